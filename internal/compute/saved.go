package compute

// SavedAnswer is what a request that is to be carried out once was answered with, for when it comes again.
type SavedAnswer struct {
	Status   int    // of HTTP
	Location string // empty: none
	Body     []byte // JSON
}
