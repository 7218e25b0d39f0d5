package qreceipt

import (
	"strings"
	"testing"
)

func TestAsks(t *testing.T) {
	tests := []struct {
		name, head string
		want       bool
	}{
		{"for this address", "Notice-Requested-Upon-Delivery-To: me@x\n", true},
		{"among others, in another form", "notice-requested-upon-delivery-to: you@x,\n Me <me@x> (me)\n", true},
		{"for another", "Notice-Requested-Upon-Delivery-To: you@x\n", false},
		{"in another case", "Notice-Requested-Upon-Delivery-To: ME@x\n", false},
		{"in no list", "Notice-Requested-Upon-Delivery-To: me@x>\n", false},
		{"nowhere", "Subject: me@x\n", false},
		{"below the header", "Subject: x\n\nNotice-Requested-Upon-Delivery-To: me@x\n", false},
	}
	for _, tt := range tests {
		head, err := readHeader(strings.NewReader(tt.head))
		if got := asks(head, "me@x"); got != tt.want || err != nil {
			t.Errorf("%s: %v %v", tt.name, got, err)
		}
	}
}

func TestAnEndlessHeaderAsksForNothing(t *testing.T) {
	head, err := readHeader(strings.NewReader("Notice-Requested-Upon-Delivery-To: me@x\n" + strings.Repeat("X: y\n", maxHeader)))
	if len(head) > maxHeader || err != nil || asks(head, "me@x") {
		t.Errorf("%d bytes, %v", len(head), err)
	}
}

func TestNobodyIsToldWhoCannotBe(t *testing.T) {
	for sender, want := range map[string]bool{"s@x": true, "": false, "#@[]": false, "a\nBcc: b@x": false} {
		if reachable(sender) != want {
			t.Errorf("%q", sender)
		}
	}
}

func TestNotice(t *testing.T) {
	got := string(notice([]byte("Message-ID: <1@x>\n folded\nMessage-ID: <2@x>\n"), "me@x", "a b@y"))
	want := "From: DELIVERY NOTICE SYSTEM <\"a b\"@y>\nTo: <\"a b\"@y>\nSubject: success notice\n\n" +
		"Hi! This is the qreceipt program. Your message was delivered to the\nfollowing address: me@x. Thanks for asking.\n" +
		"Your Message-ID: <1@x>\n folded\n"
	if got != want {
		t.Errorf("%q", got)
	}
}
