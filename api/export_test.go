package api

// Unnamed returns the operations that may change something and have no name in the audit log, but for those that record by
// themselves.
func Unnamed() (list []string) {
	for _, rt := range routes {
		name := rt.method + " " + rt.pattern
		if _, ok := actions[name]; !ok && rt.method != "GET" && !rt.changesNothing {
			list = append(list, name)
		}
	}
	return list
}
