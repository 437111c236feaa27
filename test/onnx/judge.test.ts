// What verify says of an output in words: the grade and the figure beside its limits never contradict each other.
import { describe, expect, it } from "vitest";
import { judge, type Figures } from "../../src/onnx/verify/judge.ts";

const figures: Figures = {
  name: "y",
  type: "float32",
  dims: [1, 4],
  sqnrDb: 20,
  cosine: 1,
  maxAbsError: 1,
  rms: 1,
  argmaxAgreement: null,
  kind: "values",
  agreement: null,
  noEvidence: null,
  nanReference: 0,
};
const values = (sqnrDb: number) => judge({ ...figures, sqnrDb });
const labels = (value: number) => judge({ ...figures, kind: "labels", agreement: { measure: "equal", value, count: 9 } });
const embedding = (cosine: number) => judge({ ...figures, kind: "embedding", cosine });

describe("judgements", () => {
  it("grade a figure by its kind", () => {
    expect(values(31.26)).toEqual({ grade: "good", text: "good: SQNR 31.2 dB (good from 30 dB, usual from 20 dB)" });
    expect(labels(0.96)).toEqual({ grade: "usual", text: "usual: equal 96.0% (good from 99.0%, usual from 95.0%)" });
    expect(embedding(0.99).text).toBe("usual: cosine 0.990 (good from 0.995, usual from 0.980)");
  });

  it("call an output weak that is not finite where the reference is, though its largest element be the same", () => {
    const agreement = { measure: "argmax", value: 1, count: 9 } as const;
    const text = "weak: NaN or infinity where the reference has numbers";
    for (const kind of ["logits", "probabilities", "embedding", "scores", "values"] as const)
      expect(judge({ ...figures, kind, agreement, sqnrDb: -Infinity, maxAbsError: Infinity })).toEqual({ grade: "weak", text });
    // words that differ have no error in numbers
    expect(judge({ ...figures, kind: "labels", agreement: { measure: "equal", value: 0.995, count: 200 }, sqnrDb: -Infinity }).grade).toBe("good"); // prettier-ignore
  });

  it("do not round a figure up to the limit that it misses", () => {
    expect(values(19.97).text).toBe("weak: SQNR 19.9 dB (good from 30 dB, usual from 20 dB)");
    expect(labels(0.98996).text).toBe("usual: equal 98.9% (good from 99.0%, usual from 95.0%)");
    expect(embedding(0.97999).text).toMatch(/^weak: cosine 0.979 /);
  });
});
