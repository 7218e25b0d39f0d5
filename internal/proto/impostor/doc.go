// Package impostor puts a hostile twin in the place of each side of the channels between qmail-send and its partners, and
// of those to qmail-resolve: it knows the protocol and keeps to none of it. What it may reach is the end of its own
// channel, and nothing else.
//
// There is nothing here but tests. They send 10,000 frames to each end; IMPOSTOR=1000000 in the environment has more,
// and IMPOSTORSEED has others.
package impostor
