// Rows in an SQLite database, one request a line on standard input, one answer a
// line on standard output: what was answered `ok` has been committed.
//
//   sqlwriter DATABASE [wal|delete]
//
//   insert ID   a row whose body follows from ID         ok ID
//   prune ID    deletes all rows below ID                ok ID
//   check       integrity_check, and every row's body    ok ROWS FIRST LAST
//
// A request that fails is answered `error …`. With a rollback journal (`delete`,
// the default) every transaction creates, syncs and unlinks a file.
//
// With --check instead of a journal mode, the database is only checked, and not
// changed beyond what SQLite's own recovery does: for an image found after a crash.

#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kBodyBytesMin = 100, kBodyBytesMax = 6000, kBusyTimeoutMs = 20000 };

// splitmix64's finalizer: every input bit changes half of the output's.
static uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

static size_t BodyOf(uint64_t id, unsigned char* body) {
  const size_t bytes = kBodyBytesMin + Mix(id) % (kBodyBytesMax - kBodyBytesMin);
  for (size_t n = 0; n < bytes; n++) body[n] = (unsigned char)(Mix(id + n / 64) >> (n % 57));
  return bytes;
}

static void AnswerError(const char* text) { printf("error %s\n", text); }

static bool Execute(sqlite3* db, const char* sql) {
  char* message = NULL;
  if (sqlite3_exec(db, sql, NULL, NULL, &message) == SQLITE_OK) return true;
  AnswerError(message != NULL ? message : sqlite3_errmsg(db));
  sqlite3_free(message);
  return false;
}

// Runs a statement without rows, with up to two parameters.
static bool Run(sqlite3* db, const char* sql, uint64_t id, const unsigned char* body, size_t body_bytes) {
  sqlite3_stmt* statement = NULL;
  if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) != SQLITE_OK) {
    AnswerError(sqlite3_errmsg(db));
    return false;
  }
  sqlite3_bind_int64(statement, 1, (sqlite3_int64)id);
  if (body != NULL) sqlite3_bind_blob(statement, 2, body, (int)body_bytes, SQLITE_STATIC);
  const bool done = sqlite3_step(statement) == SQLITE_DONE;
  if (!done) AnswerError(sqlite3_errmsg(db));
  sqlite3_finalize(statement);
  return done;
}

static bool IntegrityIsOk(sqlite3* db) {
  sqlite3_stmt* statement = NULL;
  if (sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &statement, NULL) != SQLITE_OK ||
      sqlite3_step(statement) != SQLITE_ROW) {
    AnswerError(sqlite3_errmsg(db));
    sqlite3_finalize(statement);
    return false;
  }
  const char* text = (const char*)sqlite3_column_text(statement, 0);
  const bool ok = text != NULL && strcmp(text, "ok") == 0;
  if (!ok) printf("error integrity_check: %.200s\n", text == NULL ? "" : text);
  sqlite3_finalize(statement);
  return ok;
}

static bool Check(sqlite3* db) {
  if (!IntegrityIsOk(db)) return false;
  sqlite3_stmt* statement = NULL;
  if (sqlite3_prepare_v2(db, "SELECT id, body FROM entries ORDER BY id", -1, &statement, NULL) != SQLITE_OK) {
    AnswerError(sqlite3_errmsg(db));
    return false;
  }
  unsigned char expected[kBodyBytesMax];
  uint64_t rows = 0, first = 0, last = 0;
  int step;
  while ((step = sqlite3_step(statement)) == SQLITE_ROW) {
    const uint64_t id = (uint64_t)sqlite3_column_int64(statement, 0);
    const size_t bytes = BodyOf(id, expected);
    const void* body = sqlite3_column_blob(statement, 1);
    if ((size_t)sqlite3_column_bytes(statement, 1) != bytes || memcmp(body, expected, bytes) != 0) {
      printf("error the body of row %llu is not what was inserted\n", (unsigned long long)id);
      sqlite3_finalize(statement);
      return false;
    }
    if (rows++ == 0) first = id;
    last = id;
  }
  if (step == SQLITE_DONE) {
    printf("ok %llu %llu %llu\n", (unsigned long long)rows, (unsigned long long)first, (unsigned long long)last);
  } else {
    AnswerError(sqlite3_errmsg(db));
  }
  sqlite3_finalize(statement);
  return step == SQLITE_DONE;
}

static void Answer(sqlite3* db, const char* line) {
  unsigned long long id = 0;
  unsigned char body[kBodyBytesMax];
  if (sscanf(line, "insert %llu", &id) == 1) {
    const size_t bytes = BodyOf(id, body);
    if (Run(db, "INSERT INTO entries VALUES (?, ?)", id, body, bytes)) printf("ok %llu\n", id);
  } else if (sscanf(line, "prune %llu", &id) == 1) {
    if (Run(db, "DELETE FROM entries WHERE id < ?", id, NULL, 0)) printf("ok %llu\n", id);
  } else if (strcmp(line, "check\n") == 0) {
    Check(db);
  } else {
    AnswerError("not a request: insert ID, prune ID, check");
  }
}

// Durable when committed, in either mode: EXTRA also syncs the directory in which the journal was.
static bool Prepare(sqlite3* db, bool wal) {
  return Execute(db, wal ? "PRAGMA journal_mode=wal" : "PRAGMA journal_mode=delete") &&
         Execute(db, "PRAGMA synchronous=extra") &&
         Execute(db, "CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, body BLOB NOT NULL)");
}

int main(int argc, char** argv) {
  const char* mode = argc == 3 ? argv[2] : "delete";
  const bool check_only = strcmp(mode, "--check") == 0;
  const bool wal = strcmp(mode, "wal") == 0;
  if (argc < 2 || argc > 3 || !(check_only || wal || strcmp(mode, "delete") == 0)) {
    fprintf(stderr, "usage: sqlwriter DATABASE [wal|delete|--check]\n");
    return 2;
  }
  setvbuf(stdout, NULL, _IOLBF, 0);
  sqlite3* db = NULL;
  const int flags = SQLITE_OPEN_READWRITE | (check_only ? 0 : SQLITE_OPEN_CREATE);
  if (sqlite3_open_v2(argv[1], &db, flags, NULL) != SQLITE_OK) {
    AnswerError(db == NULL ? "no memory" : sqlite3_errmsg(db));
    return 1;
  }
  sqlite3_busy_timeout(db, kBusyTimeoutMs);
  bool sound = true;
  if (check_only) {
    sound = Check(db);
  } else {
    sound = Prepare(db, wal);
    char line[128];
    while (sound && fgets(line, sizeof line, stdin) != NULL) Answer(db, line);
  }
  sqlite3_close(db);
  return sound ? 0 : 1;
}
