package spawn

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"testing"
)

func TestReadOrder(t *testing.T) {
	x := func(n int) string { return strings.Repeat("1", n) }
	tests := []struct {
		name, in string
		want     Order
		report   string
		err      error
	}{
		{"an order", "\x058/1234\x00s@a\x00r@b\x00", Order{5, "8/1234", "s@a", "r@b"}, "", nil},
		{"slot 0 and the null sender", "\x001\x00\x00r@b\x00", Order{0, "1", "", "r@b"}, "", nil},
		{"no order", "", Order{}, "", io.EOF},
		{"cut after the slot", "\x05", Order{Slot: 5}, "", io.ErrUnexpectedEOF},
		{"cut in the recipient", "\x051\x00s\x00r@b", Order{Slot: 5}, "", io.ErrUnexpectedEOF},
		{"a name that goes up", "\x05../x\x00s\x00r@b\x00", Order{5, "../x", "s", "r@b"}, nonNumeric, nil},
		{"a name from the root", "\x05/1\x00s\x00r@b\x00", Order{5, "/1", "s", "r@b"}, nonNumeric, nil},
		{"no name", "\x05\x00s\x00r@b\x00", Order{5, "", "s", "r@b"}, tooShort, nil},
		{"the longest name", "\x05" + x(99) + "\x00s\x00r@b\x00", Order{5, x(99), "s", "r@b"}, "", nil},
		{"a longer name", "\x05" + x(100) + "\x00s\x00r@b\x00", Order{5, x(99), "s", "r@b"}, tooLong, nil},
		{"no host", "\x051\x00s\x00r\x00", Order{5, "1", "s", "r"}, NoHost, nil},
		{"a sender without end, almost", "\x051\x00" + x(maxAddress+1) + "\x00r@b\x00", Order{5, "1", x(maxAddress), "r@b"}, outOfMemory, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, report, err := ReadOrder(bufio.NewReader(strings.NewReader(tt.in)))
			if o != tt.want || report != tt.report || err != tt.err {
				t.Errorf("%+v %q %v", o, report, err)
			}
		})
	}
}

func FuzzReadOrder(f *testing.F) { // law: an order that can be carried out has one form, and its message is below queue/mess
	f.Add([]byte("\x058/1234\x00s@a\x00r@b\x00"))
	f.Add([]byte("\x001\x00\x00r@b\x00\x011\x00\x00@\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReader(bytes.NewReader(in))
		for rest := in; ; {
			o, report, err := ReadOrder(r)
			if err != nil {
				return
			}
			b, aerr := AppendOrder(nil, o)
			if report == "" && (aerr != nil || !bytes.HasPrefix(rest, b) || strings.Contains(o.Message, "..") || o.Message[0] == '/') {
				t.Fatalf("%+v of %q", o, rest)
			}
			if report != "" && (report[0] != 'D' && report[0] != 'Z') {
				t.Fatalf("%q", report)
			}
			for range 3 { // the next one begins after three NULs, the slot apart
				i := bytes.IndexByte(rest[1:], 0)
				rest = rest[1+i:]
			}
			rest = rest[1:]
		}
	})
}

func TestWhatHasNoForm(t *testing.T) {
	if _, err := AppendOrder(nil, Order{Message: "1", Sender: "a\x00b", Recipient: "r@b"}); err == nil {
		t.Error("a NUL was written")
	}
	if got := AppendReport(nil, 3, "Kyes\x00\x04Kno"); string(got) != "\x03Kyes\x00" {
		t.Errorf("%q", got)
	}
}

func TestLocalReport(t *testing.T) {
	long := strings.Repeat("x", 4000)
	tests := []struct {
		name string
		code int
		out  string
		want string
	}{
		{"done", 0, "did 1+0+0\n", "Kdid 1+0+0\n"},
		{"done in silence", 0, "", "K"},
		{"never", 100, "no\n", "Dno\n"},
		{"later", 111, "wait\n", "Zwait\n"},
		{"the codes of sysexits.h that pass", 75, "wait\n", "Zwait\n"},
		{"an input or output error", 74, "x", "Zx"},
		{"an operating system error", 71, "x", "Zx"},
		{"any other code", 1, "oh\n", "Doh\n"},
		{"a code of the shell's", 127, "sh: not found\n", "Dsh: not found\n"},
		{"could not be executed", 126, "x", "DUnable to run qmail-local.\n"},
		{"NFS", 115, "x", "ZNFS failure in qmail-local.\n"},
		{"root", 113, "x", "ZNot allowed to perform deliveries as root.\n"},
		{"no getpw", 121, "x", "ZUnable to run qmail-getpw.\n"},
		{"a NUL ends the text", 100, "a\x00b", "Da"},
		{"a report as long as can be", 100, long[:MaxLocal], "D" + long[:MaxLocal]},
		{"a longer one is cut", 100, long, "D" + long[:cutLocal-len(cutLine)] + cutLine},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := LocalReport(tt.code, []byte(tt.out)); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestRemoteReport(t *testing.T) {
	tests := []struct {
		name string
		code int
		out  string
		want string
	}{
		{"accepted", 0, "r\x00K1.1.1.1 accepted.\n\x00", "K1.1.1.1 accepted.\n"},
		{"a permanent refusal of the recipient", 0, "hone\n\x00Kaccepted\x00", "Done\n"},
		{"a temporary one, then giving up", 0, "sone\n\x00Dgiving up\n\x00", "Zone\ngiving up\n"},
		{"a permanent one, and a death", 0, "hone\n\x00Zdied\n\x00", "Done\n"},
		{"no report on the message", 0, "r\x00", "D"},
		{"a report on the message alone", 0, "Zno host\n\x00", "Zno host\n"},
		{"a permanent one, then giving up", 0, "hone\n\x00Dgiving up\n\x00", "Done\ngiving up\n"},
		{"words that are no report", 0, "r\x00some warning\x00Kyes\n\x00", "K"},
		{"an error message comes first", 0, "such a thing\n\x00Kyes\x00", "Zuch a thing\n"},
		{"a last record without its end", 0, "r\x00Kaccepted\n", "Kaccepted\n"},
		{"the only record without its end", 0, "Zlater\n", "Zlater\n"},
		{"an empty first record", 0, "\x00Kyes\x00", "Kyes"},
		{"nothing but NULs", 0, "\x00\x00", "D"},
		{"nothing", 0, "", remoteSilent},
		{"trouble that passes", 111, "r\x00Kyes\x00", RemoteUnable},
		{"any other exit code", 1, "r\x00Kyes\x00", remoteFailed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := RemoteReport(tt.code, []byte(tt.out)); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzRemoteReport(f *testing.F) { // law: a report is a letter and a text without NUL, and success needs a K
	f.Add("r\x00K1.1.1.1 accepted.\n\x00")
	f.Add("s\x00h\x00")
	f.Fuzz(func(t *testing.T, out string) {
		got := RemoteReport(0, []byte(out))
		if got == "" || !strings.Contains("KZD", got[:1]) || strings.ContainsRune(got, 0) || len(got) > len(out)+len(remoteSilent) {
			t.Errorf("%q from %q", got, out)
		}
		if got[0] == 'K' && !strings.HasPrefix(out, "K") && !strings.Contains(out, "\x00K") {
			t.Errorf("%q from %q", got, out)
		}
	})
}
