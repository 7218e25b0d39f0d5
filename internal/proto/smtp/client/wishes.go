package client

import "qmail/internal/format/dsn"

// appendMessageWishes adds the parameters of MAIL (RFC 3461 4.3 and 4.4).
func appendMessageWishes(dst []byte, m *dsn.Message) []byte {
	switch {
	case m.Headers:
		dst = append(dst, " RET=HDRS"...)
	case m.Full:
		dst = append(dst, " RET=FULL"...)
	}
	if m.XID != "" {
		dst = append(append(dst, " ENVID="...), m.XID...)
	}
	return dst
}

// appendWishes adds the parameters of RCPT (RFC 3461 4.1 and 4.2). An original address in UTF-8 is written in ASCII
// where the transaction is (RFC 6533 3).
func appendWishes(dst []byte, r dsn.Recipient, utf8 bool) []byte {
	if r.Notify != 0 {
		dst = append(append(dst, " NOTIFY="...), r.Notify.String()...)
	}
	if r.Original == "" {
		return dst
	}
	original := r.Original
	if !utf8 {
		original = dsn.ASCIIOriginal(original)
	}
	return append(append(dst, " ORCPT="...), original...)
}
