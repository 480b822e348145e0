// Package upgrade migrates a database while programs of this build work on it.
package upgrade
