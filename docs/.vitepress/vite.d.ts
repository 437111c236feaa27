// What Vite makes of imports with ?url: where the file is on the site.
declare module "*?url" {
  const url: string;
  export default url;
}
