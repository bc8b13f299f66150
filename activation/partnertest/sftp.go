package partnertest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/mubatch/mubatch/activation"
)

// SFTP is a server that files are left at, and whoever reads them. What is scripted for HTTP becomes what is nearest to it
// here: a status an SFTP status; what breaks or never ends a connection that does, after 60 % of a file or after its
// renaming. A wait cannot be asked for, and the server's clock means nothing to anybody.
type SFTP struct {
	*inbox

	options SFTPOptions
	port    int
	ssh     *ssh.ServerConfig
	client  string // the private key of who may come
	pinned  string // the host key, as known_hosts has it

	state   sync.Mutex
	folders map[string]bool
	parts   map[string]*sftpFile // files that are not complete, by their own names
	wrong   bool                 // the host key is another than the one that is pinned
}

// SFTPOptions are what a server may do in more than one way.
type SFTPOptions struct {
	FileOptions
	Key       bool // who comes must have a key, and no password
	Questions bool // the password is asked for as a question
	Old       bool // nothing of OpenSSH's is known: no rename that replaces, no fsync
	Done      bool // data is to be marked as complete
}

const (
	sftpUser     = "mubatch"
	sftpPassword = "correct horse battery staple"
)

// NewSFTP starts a server that lives as long as the test.
func NewSFTP(t testing.TB, o SFTPOptions) *SFTP {
	t.Helper()
	f := &SFTP{options: o, folders: map[string]bool{"/": true}, parts: map[string]*sftpFile{}}
	f.inbox = newInbox(o.FileOptions)
	f.Changes(func(r *http.Request) bool { return f.hit(r.URL.Path) })
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	f.client = string(pem.EncodeToMemory(block))
	theirs, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	f.ssh = &ssh.ServerConfig{}
	switch {
	case o.Key:
		f.ssh.PublicKeyCallback = func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			return nil, f.admit(c, bytes.Equal(key.Marshal(), theirs.Marshal()))
		}
	case o.Questions:
		f.ssh.KeyboardInteractiveCallback = func(c ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			answers, err := ask("", "", []string{"Password: "}, []bool{false})
			return nil, errors.Join(err, f.admit(c, slices.Equal(answers, []string{sftpPassword})))
		}
	default:
		f.ssh.PasswordCallback = func(c ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			return nil, f.admit(c, string(password) == sftpPassword)
		}
	}
	key := newHostKey(t)
	f.ssh.AddHostKey(key)
	f.pinned = "files.example.com " + string(ssh.MarshalAuthorizedKey(key.PublicKey()))

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.port = l.Addr().(*net.TCPAddr).Port
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns = map[net.Conn]bool{}
	)
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[conn] = true
			mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				f.serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return f
}

func newHostKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// admit decides on a credential.
func (f *SFTP) admit(c ssh.ConnMetadata, right bool) error {
	f.state.Lock()
	defer f.state.Unlock()
	if f.wrong {
		f.Violate("a credential was shown to a server that nobody knows")
	}
	if !right || c.User() != sftpUser || f.closed() {
		return errors.New("refused")
	}
	return nil
}

// Settings implements [Fake].
func (f *SFTP) Settings() activation.Settings {
	config := map[string]any{
		"host": "127.0.0.1", "port": f.port, "username": sftpUser, "host_key": f.pinned, "done_marker": f.options.Done,
		"file": f.options.config(),
	}
	if f.options.Key {
		return settingsOf(config, map[string]any{"private_key": f.client})
	}
	return settingsOf(config, map[string]any{"password": sftpPassword})
}

// HostKey returns the fingerprint of the key that the server has.
func (f *SFTP) HostKey() string {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(f.pinned))
	if err != nil {
		panic(err)
	}
	return ssh.FingerprintSHA256(key)
}

// Impostor has the server treat every credential that it is shown as one that should not have been: for tests in which its
// key is not the one that is pinned.
func (f *SFTP) Impostor() {
	f.state.Lock()
	defer f.state.Unlock()
	f.wrong = true
}

// Words implements [Fake].
func (f *SFTP) Words() Words {
	busy := Fault{Status: http.StatusServiceUnavailable}
	return Words{
		Throttled: busy,
		Wait:      func(time.Duration) Fault { return busy },
		TooLarge:  busy,
		Forbidden: Fault{Status: http.StatusForbidden},
		Missing:   Fault{Status: http.StatusNotFound},
		Passing:   []Fault{{Status: http.StatusInsufficientStorage}},
	}
}

// Unfinished returns the names of files that were begun and neither completed nor removed.
func (f *SFTP) Unfinished() []string {
	f.state.Lock()
	defer f.state.Unlock()
	return slices.Sorted(maps.Keys(f.parts))
}

func (f *SFTP) serve(conn net.Conn) {
	server, channels, requests, err := ssh.NewServerConn(conn, f.ssh)
	if err != nil {
		return
	}
	defer server.Close()
	go ssh.DiscardRequests(requests)
	for c := range channels {
		if c.ChannelType() != "session" {
			f.Violate("a channel of type %s was asked for", c.ChannelType())
			c.Reject(ssh.UnknownChannelType, "")
			continue
		}
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		for r := range requests {
			ok := r.Type == "subsystem" && bytes.HasSuffix(r.Payload, []byte("sftp"))
			r.Reply(ok, nil)
			if !ok {
				f.Violate("a session was to %s", r.Type)
				continue
			}
			s := &sftpSession{fake: f, conn: conn, gone: make(chan struct{})}
			tap := newSFTPTap(channel, s)
			sftp.NewRequestServer(tap, sftp.Handlers{FileGet: s, FilePut: s, FileCmd: s, FileList: s}).Serve()
			tap.Close()
			tap.done.Wait()
		}
	}
}

// sftpSession is a connection's view of the files.
type sftpSession struct {
	fake   *SFTP
	conn   net.Conn
	gone   chan struct{} // closed when the other side is
	synced int           // how often a file was brought to the disk
	moved  int           // how often one was renamed
}

// sftpFile is one that is not complete.
type sftpFile struct {
	session *sftpSession
	fault   Fault
	faulty  bool
	mu      sync.Mutex
	data    []byte
	closed  bool
}

// cut ends the connection as a fault of the network does.
func (s *sftpSession) cut() error {
	if tcp, ok := s.conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	s.conn.Close()
	return sftp.ErrSSHFxConnectionLost
}

// sleep returns after a while, or when the other side has gone.
func (s *sftpSession) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.gone:
	}
}

// answer is what a fault looks like here.
func (s *sftpSession) answer(f Fault) error {
	s.sleep(f.Delay)
	switch {
	case f.Drip:
		s.sleep(time.Minute)
		return s.cut()
	case f.Close, f.Reset, f.Cut, f.Huge:
		return s.cut()
	case f.Status == http.StatusForbidden:
		return sftp.ErrSSHFxPermissionDenied
	case f.Status == http.StatusNotFound:
		return sftp.ErrSSHFxNoSuchFile
	default:
		return sftp.ErrSSHFxFailure
	}
}

// Filewrite opens a file to be written.
func (s *sftpSession) Filewrite(r *sftp.Request) (io.WriterAt, error) {
	f := s.fake
	dir, name := path.Split(r.Filepath)
	final, ok := strings.CutSuffix(name, ".part")
	flags := r.Pflags()
	if !ok || !strings.HasPrefix(final, ".") {
		f.Violate("%s is written under its final name", r.Filepath)
		return nil, sftp.ErrSSHFxPermissionDenied
	}
	if !flags.Creat || !flags.Trunc || flags.Append {
		f.Violate("%s is opened so that something of an earlier attempt may remain", r.Filepath)
	}
	f.state.Lock()
	there := f.folders[path.Clean(dir)]
	f.state.Unlock()
	if !there {
		return nil, sftp.ErrSSHFxNoSuchFile
	}
	w := &sftpFile{session: s}
	w.fault, w.faulty = f.next(fileRequest(http.MethodPut, dir+strings.TrimPrefix(final, ".")))
	if w.fault.Skew != 0 {
		w.faulty = false
	}
	late := w.fault.Late || w.fault.Apply || w.fault.Reset || w.fault.Cut
	if w.faulty && !late {
		return nil, s.answer(w.fault)
	}
	f.state.Lock()
	defer f.state.Unlock()
	f.parts[r.Filepath] = w
	return w, nil
}

// fileRequest stands for the writing of a file where there is no HTTP, so that faults can tell which it is.
func fileRequest(method, name string) *http.Request {
	r, err := http.NewRequest(method, "/", nil)
	if err != nil {
		panic(err)
	}
	r.URL.Path = name
	return r
}

// WriteAt implements [io.WriterAt].
func (w *sftpFile) WriteAt(p []byte, at int64) (int, error) {
	if w.faulty && !w.fault.Apply && !w.fault.Late {
		p = p[:len(p)*6/10]
		w.session.sleep(w.fault.Delay)
		defer w.session.cut()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if end := int(at) + len(p); end > len(w.data) {
		w.data = append(w.data, make([]byte, end-len(w.data))...)
	}
	return copy(w.data[at:], p), nil
}

// Close implements [io.Closer].
func (w *sftpFile) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	return nil
}

// Filecmd does what is not about the content of a file.
func (s *sftpSession) Filecmd(r *sftp.Request) error {
	switch f := s.fake; r.Method {
	case "Mkdir":
		f.state.Lock()
		defer f.state.Unlock()
		if !f.folders[path.Dir(r.Filepath)] {
			return sftp.ErrSSHFxNoSuchFile
		}
		if f.folders[r.Filepath] {
			return sftp.ErrSSHFxFailure
		}
		f.folders[r.Filepath] = true
		return nil
	case "Rename":
		if f.file(strings.TrimPrefix(r.Target, "/")) != nil {
			return sftp.ErrSSHFxFailure
		}
		return s.rename(r)
	case "Remove":
		f.state.Lock()
		defer f.state.Unlock()
		if f.parts[r.Filepath] != nil {
			delete(f.parts, r.Filepath)
			return nil
		}
		return f.remove(strings.TrimPrefix(r.Filepath, "/"))
	default:
		f.Violate("%s of %s is not known", r.Method, r.Filepath)
		return sftp.ErrSSHFxOpUnsupported
	}
}

// PosixRename renames a file, even if there is one of the new name.
func (s *sftpSession) PosixRename(r *sftp.Request) error {
	if s.fake.options.Old {
		s.fake.Violate("a rename was asked for which is not offered")
		return sftp.ErrSSHFxOpUnsupported
	}
	return s.rename(r)
}

// remove takes a file away that is there.
func (in *inbox) remove(name string) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if _, ok := in.files[name]; !ok {
		return sftp.ErrSSHFxNoSuchFile
	}
	delete(in.files, name)
	return nil
}

func (s *sftpSession) rename(r *sftp.Request) error {
	f := s.fake
	f.state.Lock()
	w := f.parts[r.Filepath]
	delete(f.parts, r.Filepath)
	s.moved++
	unsynced := !f.options.Old && s.synced < s.moved
	f.state.Unlock()
	if w == nil {
		return sftp.ErrSSHFxNoSuchFile
	}
	w.mu.Lock()
	data, closed := w.data, w.closed
	w.mu.Unlock()
	if !closed || unsynced {
		f.Violate("%s is renamed before it is complete, or on the disk", r.Filepath)
	}
	if w.faulty && w.fault.Late {
		s.sleep(w.fault.Delay)
	}
	if name := strings.TrimPrefix(r.Target, "/"); path.Base(name) == ".mubatch-connection-test" {
		f.inbox.mu.Lock()
		f.files[name] = data
		f.inbox.mu.Unlock()
	} else {
		f.Put(name, append([]byte{}, data...))
	}
	if w.faulty && w.fault.Apply {
		return s.answer(w.fault)
	}
	return nil
}

// Filelist tells of a file or folder.
func (s *sftpSession) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	f := s.fake
	f.state.Lock()
	folder, part := f.folders[r.Filepath], f.parts[r.Filepath] != nil
	f.state.Unlock()
	if r.Method != "Stat" && r.Method != "Lstat" {
		f.Violate("%s of %s is not known", r.Method, r.Filepath)
	}
	if !folder && !part && f.file(strings.TrimPrefix(r.Filepath, "/")) == nil {
		return nil, sftp.ErrSSHFxNoSuchFile
	}
	return sftpInfo{name: path.Base(r.Filepath), folder: folder}, nil
}

// Fileread refuses: nobody has any business reading here.
func (s *sftpSession) Fileread(r *sftp.Request) (io.ReaderAt, error) {
	s.fake.Violate("%s is read", r.Filepath)
	return nil, sftp.ErrSSHFxPermissionDenied
}

// sftpInfo is what is to be known of a file or a folder.
type sftpInfo struct {
	name   string
	folder bool
}

func (i sftpInfo) ListAt(list []os.FileInfo, at int64) (int, error) {
	if at > 0 || len(list) == 0 {
		return 0, io.EOF
	}
	list[0] = i
	return 1, io.EOF
}

func (i sftpInfo) Name() string     { return i.name }
func (sftpInfo) Size() int64        { return 0 }
func (sftpInfo) ModTime() time.Time { return time.Unix(0, 0) }
func (i sftpInfo) IsDir() bool      { return i.folder }
func (sftpInfo) Sys() any           { return nil }

func (i sftpInfo) Mode() fs.FileMode {
	if i.folder {
		return fs.ModeDir | 0o755
	}
	return 0o644
}

// sftpTap is what is said between the two sides, packet by packet: the library's server knows no fsync, and cannot be told to
// be older than it is.
type sftpTap struct {
	ssh.Channel
	session *sftpSession
	in      *io.PipeReader
	done    sync.WaitGroup

	mu  sync.Mutex
	out []byte // a packet that is not complete
}

func newSFTPTap(c ssh.Channel, s *sftpSession) *sftpTap {
	in, to := io.Pipe()
	t := &sftpTap{Channel: c, session: s, in: in}
	t.done.Go(func() { to.CloseWithError(t.listen(to)) })
	return t
}

func (t *sftpTap) Read(p []byte) (int, error) { return t.in.Read(p) }

// Close implements [io.Closer].
func (t *sftpTap) Close() error {
	t.in.Close()
	return t.Channel.Close()
}

const (
	sftpVersion  = 2
	sftpStatus   = 101
	sftpExtended = 200
)

// listen passes packets on to the server, all but those it does not know.
func (t *sftpTap) listen(to io.Writer) error {
	defer close(t.session.gone)
	for {
		var length [4]byte
		if _, err := io.ReadFull(t.Channel, length[:]); err != nil {
			return err
		}
		packet := make([]byte, min(binary.BigEndian.Uint32(length[:]), 1<<20))
		if _, err := io.ReadFull(t.Channel, packet); err != nil {
			return err
		}
		if len(packet) > 5 && packet[0] == sftpExtended && bytes.Contains(packet, []byte("fsync@openssh.com")) {
			if t.session.fake.options.Old {
				t.session.fake.Violate("fsync was asked for, which is not offered")
			}
			t.session.fake.state.Lock()
			t.session.synced++
			t.session.fake.state.Unlock()
			status := slices.Concat([]byte{sftpStatus}, packet[1:5], make([]byte, 12)) // 0: OK, without a message or language
			if err := t.send(status); err != nil {
				return err
			}
			continue
		}
		if _, err := to.Write(append(length[:], packet...)); err != nil {
			return err
		}
	}
}

func (t *sftpTap) send(packet []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sendLocked(packet)
}

func (t *sftpTap) sendLocked(packet []byte) error {
	_, err := t.Channel.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(packet))), packet...))
	return err
}

// Write passes packets on to the client, and says what the server is to have said of itself.
func (t *sftpTap) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.out = append(t.out, p...)
	for len(t.out) >= 4 {
		n := int(binary.BigEndian.Uint32(t.out))
		if len(t.out) < 4+n {
			break
		}
		packet := slices.Clone(t.out[4 : 4+n])
		t.out = t.out[4+n:]
		if packet[0] == sftpVersion {
			packet = packet[:5]
			if !t.session.fake.options.Old {
				for _, text := range []string{"posix-rename@openssh.com", "1", "fsync@openssh.com", "1"} {
					packet = append(binary.BigEndian.AppendUint32(packet, uint32(len(text))), text...)
				}
			}
		}
		if err := t.sendLocked(packet); err != nil {
			return 0, fmt.Errorf("answer: %w", err)
		}
	}
	return len(p), nil
}
