// LINPACK's work, written from its algorithm: a dense system of linear equations of some order is factored by
// Gaussian elimination with partial pivoting (dgefa) and solved (dgesl), column by column as in the original.
//
//   linpack --order N --rounds N
//
// Prints one line of JSON: seconds of all rounds, millions of floating point operations a second, and the largest
// normalised residual, which is of the order of 1 for a right answer: memory that was changed underneath shows.

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

// The matrix is made again for each use, by the same numbers: -0.5 to 0.5.
static void make(double *a, double *b, int n) {
  unsigned long state = 1325;
  for (long i = 0; i < (long)n * n; i++) {
    state = state * 3125 % 65536;
    a[i] = ((double)state - 32768.0) / 65536.0;
  }
  // The solution is all ones.
  memset(b, 0, (size_t)n * sizeof *b);
  for (int column = 0; column < n; column++) {
    for (int row = 0; row < n; row++) b[row] += a[(long)column * n + row];
  }
}

static void add_multiple(int count, double factor, const double *from, double *to) {
  for (int i = 0; i < count; i++) to[i] += factor * from[i];
}

static double dot(int count, const double *x, const double *y) {
  double sum = 0;
  for (int i = 0; i < count; i++) sum += x[i] * y[i];
  return sum;
}

static void swap(double *x, double *y) {
  const double kept = *x;
  *x = *y;
  *y = kept;
}

// a := its LU factors; pivot[k]: the row that was exchanged with row k.
static int factor(double *a, int n, int *pivot) {
  for (int k = 0; k < n - 1; k++) {
    double *column = a + (long)k * n;
    int largest = k;
    for (int i = k + 1; i < n; i++) {
      if (fabs(column[i]) > fabs(column[largest])) largest = i;
    }
    pivot[k] = largest;
    if (column[largest] == 0) return -1;
    swap(&column[k], &column[largest]);
    for (int i = k + 1; i < n; i++) column[i] /= -column[k];
    for (int j = k + 1; j < n; j++) {
      double *other = a + (long)j * n;
      swap(&other[k], &other[largest]);
      add_multiple(n - k - 1, other[k], column + k + 1, other + k + 1);
    }
  }
  return a[(long)n * n - 1] == 0 ? -1 : 0;
}

static void solve(const double *a, int n, const int *pivot, double *b) {
  for (int k = 0; k < n - 1; k++) {
    swap(&b[k], &b[pivot[k]]);
    add_multiple(n - k - 1, b[k], a + (long)k * n + k + 1, b + k + 1);
  }
  for (int k = n - 1; k >= 0; k--) {
    b[k] /= a[(long)k * n + k];
    add_multiple(k, -b[k], a + (long)k * n, b);
  }
}

// The largest of |A x - b|, in units of n |A| |x| eps.
static double residual(const double *a, const double *b, const double *x, int n) {
  double worst = 0, norm = 0, size = 0;
  double *row = malloc((size_t)n * sizeof *row);
  if (row == NULL) return INFINITY;
  for (int i = 0; i < n; i++) {
    for (int j = 0; j < n; j++) {
      row[j] = a[(long)j * n + i];
      norm = fmax(norm, fabs(row[j]));
    }
    worst = fmax(worst, fabs(dot(n, row, x) - b[i]));
    size = fmax(size, fabs(x[i]));
  }
  free(row);
  return worst / ((double)n * norm * size * DBL_EPSILON);
}

static int option(int argc, char **argv, const char *name, int fallback) {
  for (int i = 1; i + 1 < argc; i++) {
    if (strcmp(argv[i], name) == 0) return atoi(argv[i + 1]);
  }
  return fallback;
}

int main(int argc, char **argv) {
  const int n = option(argc, argv, "--order", 500);
  const int rounds = option(argc, argv, "--rounds", 1);
  if (n < 2 || n > 20000 || rounds < 1) {
    fprintf(stderr, "usage: linpack --order N --rounds N\n");
    return 2;
  }
  double *a = malloc((size_t)n * (size_t)n * sizeof *a);
  double *b = malloc((size_t)n * sizeof *b);
  double *x = malloc((size_t)n * sizeof *x);
  int *pivot = malloc((size_t)n * sizeof *pivot);
  if (a == NULL || b == NULL || x == NULL || pivot == NULL) {
    fprintf(stderr, "linpack: no memory for a system of order %d\n", n);
    return 1;
  }
  double spent = 0, worst = 0;
  for (int round = 0; round < rounds; round++) {
    make(a, b, n);
    memcpy(x, b, (size_t)n * sizeof *x);
    const double began = seconds();
    if (factor(a, n, pivot) != 0) {
      fprintf(stderr, "linpack: the matrix is singular\n");
      return 1;
    }
    solve(a, n, pivot, x);
    spent += seconds() - began;
    make(a, b, n);
    worst = fmax(worst, residual(a, b, x, n));
  }
  const double operations = 2.0 / 3.0 * n * n * n + 2.0 * n * n;
  printf("{\"order\":%d,\"rounds\":%d,\"seconds\":%.6f,\"mflops\":%.2f,\"residual\":%.3f}\n", n, rounds, spent,
         rounds * operations / spent / 1e6, worst);
  return worst < 100 ? 0 : 1;
}
