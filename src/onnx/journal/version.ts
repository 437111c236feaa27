/** Version of the library, as in package.json: journals and shards of another one are not continued. */
export const LIBRARY_VERSION = "0.1.0";
