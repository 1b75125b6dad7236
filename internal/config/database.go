package config

import (
	"net/url"
	"strings"
)

// EnginePath returns the directory of the containers.
func (c Config) EnginePath() string {
	if c.EngineDir != "" {
		return c.EngineDir
	}
	return c.DataDir
}

// HostKeyDir returns the directory of the gateway's host keys.
func (c Config) HostKeyDir() string {
	if c.HostKeys != "" {
		return c.HostKeys
	}
	return c.DataDir
}

// checkDatabase refuses what is no address of a PostgreSQL database, and one with a password: command lines and settings are
// read by others than root. It never shows what was given, since there may be a password in it.
func (c Config) checkDatabase(bad func(setting, format string, args ...any)) {
	if c.Database == "" {
		if c.EngineDir != "" {
			bad("engine-dir", "it is for control planes that share a PostgreSQL database; give that as database, or leave this out")
		}
		return
	}
	u, err := url.Parse(c.Database)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		bad("database", "it is an address such as postgres://berth@db.example.com/berth, and empty for an SQLite file in the data directory")
		return
	}
	_, secret := u.User.Password()
	for name := range u.Query() {
		secret = secret || strings.HasSuffix(name, "password")
	}
	if secret {
		bad("database", "a password in the address shows in `ps` and in settings; put it into a file, and name that with "+
			"?passfile=FILE or in PGPASSFILE")
	}
}
