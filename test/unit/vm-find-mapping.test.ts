/** Which of a process's mappings is guest RAM. */
import { expect, test } from 'vitest';
import { findMapping } from '../../lib/vm/describe.js';

const RAM_BYTES = 64 << 20;
const mapping = (path: string, sizeBytes = RAM_BYTES) => ({ path, sizeBytes });

test.each([
  { what: 'by its name', path: '/shm/ram', found: '/shm/ram' },
  { what: 'by its directory', path: '/huge', found: '/huge/qemu_back_mem.ram.4711' },
  { what: 'by the name that it had until it was handed over', path: '/shm/ram.handed', found: '/shm/ram' },
  { what: 'not another one of its size', path: '/shm/link', found: undefined },
  { what: 'not without a name, where there are more', path: undefined, found: undefined },
])('$what', ({ path, found }) => {
  const mappings = ['/shm/other', '/shm/ram', '/huge/qemu_back_mem.ram.4711'].map((name) => mapping(name));
  expect(findMapping([mapping('/shm/ram', 4_096), ...mappings], RAM_BYTES, path)?.path).toBe(found);
});

test('the only one that is large enough, whatever its name', () => {
  const mappings = [mapping('/shm/small', 4_096), mapping('/shm/ram')];
  for (const path of ['/link', undefined]) {
    expect(findMapping(mappings, RAM_BYTES, path)?.path).toBe('/shm/ram');
  }
});
