//go:build race

package profiles_test

func init() { raceDetector = true }
