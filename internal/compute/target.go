package compute

import "time"

// Target is what a gateway must know of a container to admit a login to it.
type Target struct {
	Container Container
	Owner     User
	Keys      []SSHKey // those that open it
}

// Account is a user with their keys.
type Account struct {
	User
	Keys []SSHKey
}

// Version says of which moment a copy of the state is. Numbers of events compare within one installation and epoch; At tells
// two histories apart where a database was put back by hand without a new epoch.
type Version struct {
	Installation string
	Epoch        int64
	Seq          int64     // the newest event that the copy includes
	At           time.Time // when that event happened; zero before the first
}

// Changes is what must be known to bring a copy of the state from one version to another: how everything that changed
// meanwhile is now, not how it came to be. What stands in it may be newer than To, never older.
type Changes struct {
	To         Version
	Accounts   []Account
	Containers []Container
	Gone       []ContainerID // deleted ones
}
