package schedule

import "time"

// Step tells from the time for which an attempt is planned when the one before it was made: the square root of the
// message's age then, in seconds, rounded down. It is below 0 for a plan that is not of the formula.
func Step(next, birth time.Time, c Channel) int64 {
	return isqrt(max(next.Unix()-birth.Unix(), 0)) - skip[c]
}

// StepAt is the first step that a message of this age or more can have been at.
func StepAt(age time.Duration) int64 {
	seconds := int64(age / time.Second)
	root := isqrt(seconds)
	if root*root < seconds {
		root++
	}
	return root
}
