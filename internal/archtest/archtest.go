// Package archtest holds the tests that keep the source as ARCHITECTURE.md says: which package may import which, the
// versions that are pinned, the size of files, and a doc comment on every package. It has no code of its own.
package archtest
