export function scratchFolder(kind: string): string;
