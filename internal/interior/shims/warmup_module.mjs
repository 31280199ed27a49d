// Imported once, so that the loader of ES modules is ready.
export const handler = async () => null;
