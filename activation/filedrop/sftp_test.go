package filedrop_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/filedrop"
	"github.com/mubatch/mubatch/activation/partnertest"
)

func newSFTP(t testing.TB, o partnertest.SFTPOptions) (*filedrop.SFTP, *partnertest.SFTP) {
	return filedrop.NewSFTP(private), partnertest.NewSFTP(t, o)
}

func TestSuiteSFTP(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]partnertest.SFTPOptions{
		"standard":                            {},
		"an old server, a key, and markers":   {Old: true, Key: true, Done: true},
		"LiveRamp, with a password asked for": {FileOptions: partnertest.FileOptions{LiveRamp: true}, Questions: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, name, func(t testing.TB) (activation.Partner, partnertest.Fake) {
				partner, fake := newSFTP(t, o)
				return prompt{partner, partner}, fake
			})
		})
	}
}

// Keys that nobody uses: as OpenSSH writes them, and the second with a passphrase.
func privateKeys(t testing.TB) (plain, protected string, public ssh.PublicKey) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a, errA := ssh.MarshalPrivateKey(private, "")
	b, errB := ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte("battery staple"))
	public, errC := ssh.NewPublicKey(private.Public())
	if err := errors.Join(errA, errB, errC); err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(a)), string(pem.EncodeToMemory(b)), public
}

func marshal(t testing.TB, v any) jsontext.Value {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPrepareSFTP(t *testing.T) {
	t.Parallel()
	plain, protected, public := privateKeys(t)
	authorized := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
	p := filedrop.NewSFTP(activation.Outbound{})
	prepared, err := p.Prepare(activation.Settings{
		Config: marshal(t, map[string]any{"host": "files.example.com", "username": "u"}), Secrets: jsontext.Value(`{"password":"p"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"host":"files.example.com","port":22,"username":"u","file":{"profile":"standard",`; !strings.HasPrefix(string(prepared.Config), want) {
		t.Errorf("defaults: %s", prepared.Config)
	}
	for name, tt := range map[string]struct {
		config  map[string]any
		secrets map[string]any
		want    map[string]string
	}{
		"keys, fingerprints and comments": {
			config: map[string]any{"host_key": "# of the office\n" + authorized + "\n[files.example.com]:2222,10.0.0.1 " + authorized + " me\n" + ssh.FingerprintSHA256(public) + "\n"},
		},
		"LiveRamp's form":               {config: map[string]any{"host": "files.liveramp.com", "file": map[string]any{"profile": "liveramp"}}},
		"a private key":                 {secrets: map[string]any{"private_key": plain}},
		"a private key from Windows":    {secrets: map[string]any{"private_key": strings.ReplaceAll(plain, "\n", "\r\n")}},
		"a private key with passphrase": {secrets: map[string]any{"private_key": protected, "passphrase": "battery staple"}},
		"nothing": {config: map[string]any{"host": "", "username": ""}, secrets: map[string]any{}, want: map[string]string{
			"/config/host": "is required", "/config/username": "is required", "/secrets": "must hold password or private_key",
		}},
		"a host inside": {config: map[string]any{"host": "10.0.0.1"}, want: map[string]string{"/config/host": "is not on the public internet"}},
		"a URL":         {config: map[string]any{"host": "sftp://example.com"}, want: map[string]string{"/config/host": "is not the name of a host"}},
		"a port that is not allowed": {
			config: map[string]any{"port": 25}, want: map[string]string{"/config/port": "must be one of 22, 2222"},
		},
		"a host key of somebody's making": {
			config: map[string]any{"host_key": "ssh-rsa me"},
			want:   map[string]string{"/config/host_key": "must be lines of known_hosts, or fingerprints such as SHA256:…"},
		},
		"an authority": {
			config: map[string]any{"host_key": "@cert-authority * " + authorized},
			want:   map[string]string{"/config/host_key": "must be keys of the server itself, not of an authority"},
		},
		"a public key for a private one": {
			secrets: map[string]any{"private_key": authorized},
			want:    map[string]string{"/secrets/private_key": "is not a private key in a form of OpenSSH or PEM"},
		},
		"no passphrase": {
			secrets: map[string]any{"private_key": protected},
			want:    map[string]string{"/secrets/private_key": "is protected by a passphrase: give that, too"},
		},
		"a wrong passphrase": {
			secrets: map[string]any{"private_key": protected, "passphrase": "x"},
			want:    map[string]string{"/secrets/private_key": "does not open with the passphrase"},
		},
	} {
		config := map[string]any{"host": "files.example.com", "username": "u"}
		for k, v := range tt.config {
			config[k] = v
		}
		if tt.secrets == nil {
			tt.secrets = map[string]any{"password": "p"}
		}
		_, err := p.Prepare(activation.Settings{Config: marshal(t, config), Secrets: marshal(t, tt.secrets)})
		got := map[string]string{}
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, err := range joined.Unwrap() {
				collect(err, got)
			}
		}
		if tt.want == nil {
			tt.want = map[string]string{}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	shown := p.Mask(marshal(t, map[string]any{"private_key": protected, "passphrase": "battery staple", "password": "correct horse"}))
	want := map[string]string{"private_key": ssh.FingerprintSHA256(public), "passphrase": "…", "password": "…orse"}
	if diff := cmp.Diff(want, shown); diff != "" {
		t.Errorf("what is shown of secrets (-want +got):\n%s", diff)
	}
}

func collect(err error, into map[string]string) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			collect(err, into)
		}
		return
	}
	var field *activation.FieldError
	if errors.As(err, &field) {
		into[field.Pointer] = field.Detail
	}
}

// What Test says of each mistake that somebody makes.
func TestTellsWhatIsWrongWithSFTP(t *testing.T) {
	t.Parallel()
	_, _, other := privateKeys(t)
	theirs, _, _ := privateKeys(t)
	nowhere := httpPort(t)
	all := func(*http.Request) bool { return true }
	for name, tt := range map[string]struct {
		config, secrets map[string]any
		options         partnertest.SFTPOptions
		fault           partnertest.Fault
		impostor        bool
		class           activation.Class
		says            string
	}{
		"nothing":                   {class: activation.OK},
		"nothing, at an old server": {options: partnertest.SFTPOptions{Old: true}, class: activation.OK},
		"nothing, with a key":       {options: partnertest.SFTPOptions{Key: true}, class: activation.OK},
		"nothing, when asked":       {options: partnertest.SFTPOptions{Questions: true}, class: activation.OK},
		"no key is pinned":          {config: map[string]any{"host_key": ""}, impostor: true, class: activation.Config, says: "no host key is pinned; the server has FINGERPRINT"},
		"another key is pinned": {
			config: map[string]any{"host_key": ssh.FingerprintSHA256(other)}, impostor: true, class: activation.Config,
			says: "the server's host key is FINGERPRINT, which is not the one that is pinned",
		},
		"the same kind of key": {
			config: map[string]any{"host_key": string(ssh.MarshalAuthorizedKey(other))}, impostor: true, class: activation.Config,
			says: "the server's host key is FINGERPRINT",
		},
		"the fingerprint is enough":   {config: map[string]any{"host_key": "FINGERPRINT"}, class: activation.OK},
		"a password":                  {secrets: map[string]any{"password": "other"}, class: activation.Reauth, says: "refuses the user name, the password or the key"},
		"a user":                      {config: map[string]any{"username": "other"}, class: activation.Reauth, says: "refuses the user name"},
		"a key":                       {options: partnertest.SFTPOptions{Key: true}, secrets: map[string]any{"private_key": theirs}, class: activation.Reauth, says: "refuses the user name"},
		"a permission":                {fault: partnertest.Fault{Status: 403, Match: all}, class: activation.Config, says: "may not write to the folder"},
		"a folder":                    {fault: partnertest.Fault{Status: 404, Times: 2, Match: all}, class: activation.Config, says: "the folder does not exist"},
		"a port where nobody listens": {config: map[string]any{"port": 1}, class: activation.Retry, says: "the connection was refused"},
		"a port of something else":    {config: map[string]any{"port": nowhere}, class: activation.Retry, says: "the connection broke"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			partner, fake := newSFTP(t, tt.options)
			if tt.impostor {
				fake.Impostor()
			}
			if tt.fault.Match != nil {
				fake.Script(tt.fault)
			}
			if tt.config["host_key"] == "FINGERPRINT" {
				tt.config = map[string]any{"host_key": fake.HostKey()}
			}
			to := activation.Target{Settings: changed(t, fake.Settings(), tt.config, tt.secrets)}
			says := strings.ReplaceAll(tt.says, "FINGERPRINT", fake.HostKey())
			o := partner.Test(minute(t), to)
			if o.Class != tt.class || !strings.Contains(o.Reason, says) {
				t.Errorf("%s, %q, want %s, %q", o.Class, o.Reason, tt.class, says)
			}
			if n := len(fake.Files()) + len(fake.Unfinished()); n > 0 {
				t.Errorf("it left %v and %v", fake.Files(), fake.Unfinished())
			}
			fake.Seed(partnertest.Somebody(1))
			if tt.impostor { // and nothing is sent either
				if o := partner.Send(minute(t), to, message(t, partner, to, 1, partnertest.Somebody(1))); o.Class != activation.Config {
					t.Errorf("a message is sent all the same: %+v", o)
				}
			}
			noViolations(t, fake)
		})
	}
}

// httpPort returns a port where something else than SSH is spoken.
func httpPort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

func TestSFTPStaysOutside(t *testing.T) {
	t.Parallel()
	_, fake := newSFTP(t, partnertest.SFTPOptions{})
	fake.Impostor()
	to := activation.Target{Settings: fake.Settings()}
	for _, host := range []string{"127.0.0.1", "localhost", "::1", "169.254.169.254"} {
		to.Settings = changed(t, to.Settings, map[string]any{"host": host}, nil)
		o := filedrop.NewSFTP(activation.Outbound{}).Test(minute(t), to)
		if o.Class != activation.Retry || o.Unknown || host != "localhost" && o.Reason != activation.ErrBlocked.Error() {
			t.Errorf("%s: %+v, want it blocked", host, o)
		}
	}
	noViolations(t, fake)
}

// An attempt ends with its context, whatever the server does not do.
func TestSFTPEndsInTime(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]partnertest.Fault{
		"an answer that never comes":        {Drip: true, Apply: true},
		"an answer that comes far too late": {Delay: time.Hour, Status: 500},
	} {
		partner, fake := newSFTP(t, partnertest.SFTPOptions{})
		fake.Seed(partnertest.Somebody(1))
		to := activation.Target{Settings: fake.Settings()}
		fault.Match = func(*http.Request) bool { return true }
		fake.Script(fault)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		o := partner.Send(ctx, to, message(t, partner, to, 1, partnertest.Somebody(1)))
		cancel()
		if o.Class != activation.Retry || o.Unknown != fault.Apply || o.Reason != "no answer in time" {
			t.Errorf("%s: %+v", name, o)
		}
	}
}

// What an attempt leaves behind, the next one replaces.
func TestSFTPLeavesNothingHalf(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]partnertest.SFTPOptions{"new": {}, "old": {Old: true, Done: true}} {
		partner, fake := newSFTP(t, o)
		fake.Seed(partnertest.Somebody(1))
		to := activation.Target{Settings: fake.Settings()}
		all := func(*http.Request) bool { return true }
		fake.Script(
			partnertest.Fault{Reset: true, Match: all}, partnertest.Fault{Cut: true, Match: all},
			partnertest.Fault{Status: 500, Apply: true, Match: all}, partnertest.Fault{Reset: true, Apply: true, Match: all},
		)
		m := message(t, partner, to, 1, partnertest.Somebody(1))
		var classes []activation.Class
		for range 6 {
			classes = append(classes, partner.Send(minute(t), to, m).Class)
		}
		want := []activation.Class{activation.Retry, activation.Retry, activation.Retry, activation.Retry, activation.OK, activation.OK}
		if diff := cmp.Diff(want, classes); diff != "" {
			t.Errorf("%s: outcomes (-want +got):\n%s", name, diff)
		}
		files := 2
		if o.Done {
			files = 3
		}
		if len(fake.Files()) != files || len(fake.Unfinished()) > 0 {
			t.Errorf("%s: it left %v and %v", name, fake.Files(), fake.Unfinished())
		}
		noViolations(t, fake)
	}
}

// The fake tells right from wrong.
func TestSFTPFakeIsStrict(t *testing.T) {
	t.Parallel()
	const name = "000000000001-k1-0001.csv.gz"
	for want, do := range map[string]func(c *sftp.Client) error{
		"is written under its final name": func(c *sftp.Client) error { return write(c, name, name) },
		"before it is complete": func(c *sftp.Client) error { // not synced
			return errors.Join(write(c, "."+name+".part", ""), c.PosixRename("."+name+".part", name))
		},
		"may remain": func(c *sftp.Client) error {
			_, err := c.OpenFile("."+name+".part", os.O_WRONLY|os.O_CREATE)
			return err
		},
		"is read": func(c *sftp.Client) error {
			f, err := c.Open("x")
			if err == nil {
				f.Close()
			}
			return err
		},
		"is not known":    func(c *sftp.Client) error { return c.Chmod(name, 0o777) },
		"not the name of": func(c *sftp.Client) error { return errors.Join(write(c, ".x.part", ""), c.PosixRename(".x.part", "x")) },
	} {
		_, fake := newSFTP(t, partnertest.SFTPOptions{})
		var cfg struct {
			Port     int
			Username string
		}
		var sec struct{ Password string }
		s := fake.Settings()
		if err := errors.Join(json.Unmarshal(s.Config, &cfg, json.MatchCaseInsensitiveNames(true)), json.Unmarshal(s.Secrets, &sec, json.MatchCaseInsensitiveNames(true))); err != nil {
			t.Fatal(err)
		}
		conn, err := ssh.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(cfg.Port)), &ssh.ClientConfig{
			User: cfg.Username, Auth: []ssh.AuthMethod{ssh.Password(sec.Password)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(),
		})
		if err != nil {
			t.Fatal(err)
		}
		c, err := sftp.NewClient(conn)
		if err != nil {
			t.Fatal(err)
		}
		err = do(c) // which may be refused: what counts is what is noted
		conn.Close()
		c.Close()
		if got := strings.Join(fake.Violations(), "\n"); !strings.Contains(got, want) {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}

// write writes a file, without bringing it to the disk.
func write(c *sftp.Client, name, text string) error {
	f, err := c.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(text))
	return errors.Join(err, f.Close())
}
