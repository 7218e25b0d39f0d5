package vectors

// Exception says why a recording is not followed although it is not tagged as a wart: the original loses mail there.
// Whoever does as recorded has the fault again, so a replay fails there as it would elsewhere for a difference.
func Exception(name string) (reason string, ok bool) {
	switch name {
	case "users-lookup-rcpt":
		return `mail for "@d.example" is refused; the original drops it and says that it was delivered`, true
	case "utils-m2m":
		return "the original drops a last line that is not ended, and then the message that it was in", true
	}
	return "", false
}
