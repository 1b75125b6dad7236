package compute

// Target is what a gateway must know of a container to admit a login to it.
type Target struct {
	Container Container
	Owner     User
	Keys      []SSHKey // those that open it
}
