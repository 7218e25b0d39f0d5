// Package vectors replays recordings of the classic programs: JSON lines that say what goes into a program and
// what came out of the original. It runs programs by their classic names from a directory and compares, with
// tokens for what cannot be the same twice (a date, a process number) and with the freedom that each kind of
// program has (wording, for one).
//
// It is part of the tests; nothing that is installed uses it.
package vectors

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
)

// Value is a byte value: a JSON string, or an object that says how to make the bytes.
type Value []byte

// UnmarshalJSON reads "text", {"b64": ...}, {"hex": ...}, {"cat": [...]} and {"rep": [value, n]}.
func (v *Value) UnmarshalJSON(in []byte) error {
	if bytes.Equal(in, []byte("null")) {
		*v = nil
		return nil
	}
	if in[0] == '"' {
		var s string
		err := json.Unmarshal(in, &s)
		*v = []byte(s)
		return err
	}
	var form struct {
		B64, Hex *string
		Cat      []Value
		Rep      []json.RawMessage
	}
	if err := json.Unmarshal(in, &form); err != nil {
		return err
	}
	var err error
	switch {
	case form.B64 != nil:
		*v, err = base64.StdEncoding.DecodeString(*form.B64)
	case form.Hex != nil:
		*v, err = hex.DecodeString(*form.Hex)
	case form.Cat != nil:
		*v = bytes.Join(parts(form.Cat), nil)
	case len(form.Rep) == 2:
		var one Value
		var n int
		if err = json.Unmarshal(form.Rep[0], &one); err == nil {
			err = json.Unmarshal(form.Rep[1], &n)
		}
		if err == nil {
			*v = bytes.Repeat(one, n)
		}
	default:
		err = fmt.Errorf("not a byte value: %s", in)
	}
	return err
}

func parts(list []Value) (b [][]byte) {
	for _, v := range list {
		b = append(b, v)
	}
	return b
}

// ControlFile is a file of control/ or users/: a value, or one with a mode, or a directory.
type ControlFile struct {
	Mode string
	Data Value
	Dir  bool
}

// UnmarshalJSON takes a plain value for the data.
func (c *ControlFile) UnmarshalJSON(in []byte) error {
	var form struct {
		Mode string
		Data *Value
		Dir  bool
	}
	if err := json.Unmarshal(in, &form); err == nil && (form.Data != nil || form.Dir) {
		*c = ControlFile{Mode: form.Mode, Dir: form.Dir}
		if form.Data != nil {
			c.Data = *form.Data
		}
		return nil
	}
	return c.Data.UnmarshalJSON(in)
}

// Account is a number or a name.
type Account string

// UnmarshalJSON takes both.
func (a *Account) UnmarshalJSON(in []byte) error {
	var name string
	if err := json.Unmarshal(in, &name); err == nil {
		*a = Account(name)
		return nil
	}
	var n int
	err := json.Unmarshal(in, &n)
	*a = Account(fmt.Sprint(n))
	return err
}

// File is a file to set up below the case's directory.
type File struct {
	Path, Mode string
	Data       Value
	Dir        bool
	Link       string
	Owner      *int
	MTime      int64
}

// Case is one recording.
type Case struct {
	Name, Family, Kind, Desc string
	Wart                     bool
	Why                      string
	Needs                    []string
	Control, Users           map[string]ControlFile
	Files                    []File
	Setup                    [][]string
	Prog, Argv0, Cwd         string
	Args                     []string
	Env                      map[string]*string
	UID                      Account
	Watch                    []string
	WatchHome                []string `json:"watch_home"`
	Queue                    struct {
		Exit   int
		Signal string
		FD6    string
		Read   *bool
	}
	RealQueue, Stored bool
	Stdin             Value
	FD1               *Value
	Servers           []Server
	Proto             string
	Steps             []struct {
		Send   Value
		Pieces int
		Wait   float64
	}
	Recipients []Value `json:"rcpts"` // of a lookup
	AliasEmpty string  // its default delivery
	Actions    []Action
	Expect     Expect
}

// Queued is a message that reached the queue.
type Queued struct {
	Sender     Value
	Recipients []Value `json:"rcpts"`
	Message    Value
}

// Entry is the state of a file in a watched directory.
type Entry struct {
	Mode string
	Dir  bool
	Data *Value
	Link *Value
	Gone bool
}

// Entries is one entry, or several whose names do not matter.
type Entries []Entry

// UnmarshalJSON takes both.
func (e *Entries) UnmarshalJSON(in []byte) error {
	if in[0] == '[' {
		return json.Unmarshal(in, (*[]Entry)(e))
	}
	var one Entry
	err := json.Unmarshal(in, &one)
	*e = Entries{one}
	return err
}

// Seen is what a server saw of one connection: all of it, or the commands and the lines of the message.
type Seen struct {
	Raw      Value
	Commands []Value
	Body     Value
}

// Expect is what the original did.
type Expect struct {
	Exit           int
	Stdout         *Value
	Stderr         Value
	Queued, Stored []Queued
	Saw            [][]*Seen
	Home           map[string]*Value
	Tree           map[string]Entries
	Recv           []Value
	Tail           Value
	Reports        []Value
	Trace          []Traced
}

// Load reads a file of cases.
func Load(path string) ([]Case, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var cases []Case
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var c Case
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return nil, fmt.Errorf("%s: case %d: %w", path, len(cases)+1, err)
		}
		cases = append(cases, c)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(cases) == 0 {
		return nil, fmt.Errorf("%s: no cases", path)
	}
	return cases, nil
}
