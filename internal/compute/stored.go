package compute

import "time"

// Stored is what an engine holds of one container, whether the database knows of it or not.
type Stored struct {
	Ref
	Bytes     int64     // on disk; 0 where there is no volume
	WrittenAt time.Time // when it was written to last; zero where there is no volume
	Running   bool
	Foreign   bool // another installation's, by the mark that it carries
}
