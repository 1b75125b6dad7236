// Command api (berth-api) is Berth's control plane: the database, the containers and the REST API.
package main

import "berth/internal/app"

func main() {
	app.Main("berth-api", "Run Berth's control plane: database, containers, REST API", app.API)
}
