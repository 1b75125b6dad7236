package compute

// Entry says why nobody gets into the container now, or nil.
func (c Container) Entry() error {
	switch {
	case !c.SSHEnabled:
		return Errorf(CodeSSHDisabled,
			"SSH is off for container %s; its owner turns it on with PUT /compute/containers/%s/ssh.", c.ID, c.ID)
	case c.Status == StatusRunning:
		return nil
	case c.Status == StatusFailed && c.StatusMessage != "":
		return Errorf(CodeNotRunning, "Container %s has failed: %s", c.ID, c.StatusMessage)
	case c.Status == StatusFailed, c.Status == StatusStopped:
		return Errorf(CodeNotRunning,
			"Container %s is %s; its owner starts it with POST /compute/containers/%s/start.", c.ID, c.Status, c.ID)
	}
	return Errorf(CodeNotRunning, "Container %s is starting (%s); try again in a moment.", c.ID, c.Status)
}
