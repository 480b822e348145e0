package guard

// Endpoints returns the methods and paths that a Handler serves, as OpenAPI has them.
func Endpoints() (all []string) {
	for _, e := range endpoints {
		path := e.path
		if e.withID {
			path += "{request_id}"
		}
		all = append(all, e.method+" "+path)
	}
	return all
}
