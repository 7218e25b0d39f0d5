package client

import (
	"strings"
	"testing"

	"qmail/internal/format/dsn"
)

func TestWishesGoToWhoOffersDSN(t *testing.T) {
	offers := strings.Replace(esmtp, "250-SIZE", "250-DSN\r\n250-SIZE", 1)
	wishes := dsn.OfMessage([]string{"RET=HDRS", "ENVID=a+2Bb"})
	recipients := map[int]dsn.Recipient{
		0: dsn.OfRecipient([]string{"NOTIFY=SUCCESS,DELAY", "ORCPT=rfc822;u@y"}),
		2: dsn.OfRecipient([]string{"NOTIFY=NEVER", "ORCPT=utf-8;ü@y"}),
	}
	tests := []struct {
		name, ehlo string
		m          Message
		want       string
		reports    bool
	}{
		{"a server without DSN", esmtp, Message{Wishes: wishes, RecipientWishes: recipients},
			"MAIL FROM:<s@h> SIZE=14|RCPT TO:<u@x>|RCPT TO:<v@x>|RCPT TO:<w@x>|", false},
		{"a server without anything", "502 no\r\n", Message{Wishes: wishes, RecipientWishes: recipients},
			"MAIL FROM:<s@h>|RCPT TO:<u@x>|RCPT TO:<v@x>|RCPT TO:<w@x>|", false},
		{"a server with DSN", offers, Message{Wishes: wishes, RecipientWishes: recipients},
			"MAIL FROM:<s@h> SIZE=14 RET=HDRS ENVID=a+2Bb|RCPT TO:<u@x> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;u@y|RCPT TO:<v@x>|" +
				`RCPT TO:<w@x> NOTIFY=NEVER ORCPT=utf-8;\x{FC}@y|`, true},
		{"a sender without wishes", offers, Message{}, "MAIL FROM:<s@h> SIZE=14|RCPT TO:<u@x>|RCPT TO:<v@x>|RCPT TO:<w@x>|", true},
		{"a sender who wants all back", offers, Message{Wishes: dsn.OfMessage([]string{"RET=FULL"})},
			"MAIL FROM:<s@h> SIZE=14 RET=FULL|RCPT TO:<u@x>|RCPT TO:<v@x>|RCPT TO:<w@x>|", true},
		{"a transaction in UTF-8", offers, Message{Sender: "ü@h", RecipientWishes: recipients},
			"MAIL FROM:<ü@h> SIZE=14 SMTPUTF8|RCPT TO:<u@x> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;u@y|RCPT TO:<v@x>|RCPT TO:<w@x> NOTIFY=NEVER ORCPT=utf-8;ü@y|", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := startSink(t, map[string]string{"ehlo": tt.ehlo})
			m := tt.m
			if m.Sender == "" {
				m.Sender = "s@h"
			}
			m.Recipients, m.Body = []string{"u@x", "v@x", "w@x"}, Memory([]byte("Subject: x\n\n"))
			r := s.client(t).Deliver(&m)
			if r.Message.Letter != 'K' || r.Reports != tt.reports {
				t.Errorf("%+v", r)
			}
			if !strings.Contains(strings.ReplaceAll(s.saw(), `<"ü"@h>`, "<ü@h>"), tt.want) {
				t.Errorf("saw %s\nwant %s", s.saw(), tt.want)
			}
		})
	}
}
