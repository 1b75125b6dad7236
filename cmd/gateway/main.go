// Command gateway (berth-gateway) is Berth's SSH gateway, which follows a control plane over the link.
package main

import "berth/internal/app"

func main() {
	app.Main("berth-gateway", "Run Berth's SSH gateway, which follows a berth-api over the link", app.Gateway)
}
