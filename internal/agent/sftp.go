package agent

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/pkg/sftp"
)

type stdio struct {
	io.Reader
	io.WriteCloser
}

// ServeSFTP serves the SFTP protocol on standard input and output, with the rights and in the directory of this
// process, which runs as the session's user.
func ServeSFTP() error {
	// Without a working directory of its own: it would join relative targets of symlinks to it.
	srv, err := sftp.NewServer(stdio{os.Stdin, os.Stdout})
	if err != nil {
		return fmt.Errorf("sftp: %w", err)
	}
	if err := srv.Serve(); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("sftp: %w", err)
	}
	return nil
}
