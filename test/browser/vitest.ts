// What a suite gets for `import ... from "vitest"` in a page (or in Deno): the runner and the expect of vitest itself,
// without its Node parts.
import * as chai from "chai";
import {
  ASYMMETRIC_MATCHERS_OBJECT,
  customMatchers,
  getState,
  GLOBAL_EXPECT,
  JestAsymmetricMatchers,
  JestChaiExpect,
  JestExtend,
  setState,
  type ExpectStatic,
} from "@vitest/expect";

export { afterAll, afterEach, beforeAll, beforeEach, describe, it, test } from "@vitest/runner";

chai.use(JestExtend);
chai.use(JestChaiExpect);
chai.use(JestAsymmetricMatchers);

const scope = globalThis as unknown as Record<symbol, object>;
export const expect = Object.assign(
  (value: unknown, message?: string) => chai.expect(value, message),
  chai.expect,
  scope[ASYMMETRIC_MATCHERS_OBJECT],
) as unknown as ExpectStatic;
expect.getState = () => getState(expect);
expect.setState = (state) => setState(state, expect);
scope[GLOBAL_EXPECT] = expect;
setState({ assertionCalls: 0, isExpectingAssertions: false, expectedAssertionsNumber: null }, expect);
// chai's own `extend` wants to be told which expect it extends
expect.extend = (matchers) => (chai.expect as unknown as { extend(e: ExpectStatic, m: object): void }).extend(expect, matchers);
expect.extend(customMatchers);
