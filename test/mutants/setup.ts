// Setup of the runs of scripts/mutate.ts: a property that fails has found its mutant, nobody reads a smaller example.
import fc from "fast-check";

fc.configureGlobal({ ...fc.readConfigureGlobal(), endOnFailure: true });
