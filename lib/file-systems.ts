/** Types of the file systems on which RAM is kept, as statfs(2) has them (linux/magic.h). */

export const TMPFS_MAGIC = 0x01021994;
/** Its free blocks say nothing of the pages that are reserved. */
export const HUGETLBFS_MAGIC = 0x958458f6;
