// Package sim runs a whole mail server inside one process: qmail-send with its schedule and its journal, qmail-smtpd,
// the sessions that take mail elsewhere, deliveries to users, and the DNS, between clients and servers that it plays
// itself. Time is virtual, the network and the disk are in memory, and everything that goes wrong is drawn from one
// number, the seed: slow, lying and dying servers, partitions, lost replies, clocks that jump, full and failing disks,
// processes that are killed, and a machine whose power fails with what was not synced lost, kept or torn.
//
// What is asked in the end is simple. Each recipient of each message that was answered with 250 was delivered,
// forwarded or bounced, and is told so by whoever got the mail, not by us; nothing that was refused was delivered; no
// byte is wrong; and whoever got something twice had a reason, which is a fault that the seed planned.
//
// There is nothing here but tests: go test ./sim runs the first seeds, go test ./sim -seed 17 one of them.
package sim
