package filedrop

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/activation/wire"
)

// SFTP puts files into a folder of an SFTP server. Make one with [NewSFTP].
type SFTP struct {
	drop
	outbound activation.Outbound
	dialer   *net.Dialer
}

var (
	_ activation.AudiencePartner = (*SFTP)(nil)
	_ activation.Drafter         = (*SFTP)(nil)
)

// ports are those that servers may listen at, unless the installation names others.
var ports = []uint16{22, 2222}

// NewSFTP returns a partner that connects to what cfg allows.
func NewSFTP(cfg activation.Outbound) *SFTP {
	return &SFTP{outbound: cfg, dialer: activation.NewDialer(cfg, ports...)}
}

// SFTPConfig is what the config of a destination of type sftp holds.
type SFTPConfig struct {
	Host     string `json:"host"`
	Port     int    `json:"port,omitzero" validate:"omitempty,min=1,max=65535"` // 22
	Username string `json:"username" validate:"required,max=256"`

	// HostKey is the key by which the server is known: lines as known_hosts has them, or fingerprints such as SHA256:…
	// Without it nothing is sent: a test tells the fingerprint of the key that the server has, to be compared with what its
	// owner says.
	HostKey string `json:"host_key,omitzero" validate:"max=8192"`

	DoneMarker bool `json:"done_marker,omitzero"` // an empty file {name}.done after each file of data
	File       File `json:"file,omitzero"`
}

type sftpSecrets struct {
	Password   string `json:"password,omitzero" validate:"max=1024" secret:"text"`
	PrivateKey string `json:"private_key,omitzero" validate:"max=32768" secret:"text"`
	Passphrase string `json:"passphrase,omitzero" validate:"max=1024" secret:"text"` // of the key
}

// Type returns "sftp".
func (*SFTP) Type() string { return "sftp" }

// Prepare implements [activation.Partner].
func (p *SFTP) Prepare(s activation.Settings) (activation.Settings, error) {
	var (
		cfg SFTPConfig
		sec sftpSecrets
	)
	errs := []error{wire.Check(s, &cfg, &sec)}
	wrong := func(at, detail string) { errs = append(errs, &activation.FieldError{Pointer: at, Detail: detail}) }
	if detail := p.outbound.CheckHost(cfg.Host); detail != "" {
		wrong("/config/host", detail)
	}
	if cfg.Port == 0 {
		cfg.Port = 22
	}
	allowed := p.outbound.Ports
	if len(allowed) == 0 {
		allowed = ports
	}
	if !p.outbound.AllowPrivate && !slices.Contains(allowed, uint16(cfg.Port)) {
		var list []string
		for _, port := range allowed {
			list = append(list, strconv.Itoa(int(port)))
		}
		wrong("/config/port", "must be one of "+strings.Join(list, ", "))
	}
	if _, err := parsePins(cfg.HostKey); err != nil {
		wrong("/config/host_key", err.Error())
	}
	switch _, err := sec.signer(); {
	case err != nil:
		wrong("/secrets/private_key", err.Error())
	case sec.Password == "" && sec.PrivateKey == "":
		wrong("/secrets", "must hold password or private_key")
	}
	cfg.File = cfg.File.withDefaults()
	if err := errors.Join(append(errs, cfg.File.check())...); err != nil {
		return activation.Settings{}, err
	}
	return wire.Settings(cfg, sec)
}

// Mask implements [activation.Partner]. A private key is shown by the fingerprint of the public one.
func (*SFTP) Mask(v jsontext.Value) map[string]string {
	var sec sftpSecrets
	if wire.Read(activation.Settings{Secrets: v}, nil, &sec) != nil {
		return nil
	}
	shown := map[string]string{}
	if sec.Password != "" {
		shown["password"] = wire.Mask(sec.Password)
	}
	if key, err := sec.signer(); err == nil && key != nil {
		shown["private_key"] = ssh.FingerprintSHA256(key.PublicKey())
	}
	if sec.Passphrase != "" {
		shown["passphrase"] = "…"
	}
	return shown
}

// Limits implements [activation.Partner].
func (p *SFTP) Limits(t activation.Target) activation.Limits { return p.limits(t, 2) }

// Send implements [activation.Partner]: it writes the data, and then the manifest, each under another name first.
func (p *SFTP) Send(ctx context.Context, to activation.Target, m activation.Message) activation.Outcome {
	cfg, sec, err := p.read(to)
	if err != nil {
		return wire.BadSettings()
	}
	r, err := readRun(m.Body)
	if err != nil {
		return activation.Outcome{Class: activation.Config, Reason: "the message cannot be read"}
	}
	files, err := cfg.files(r, m)
	if err != nil {
		return activation.Outcome{Class: activation.Config, Reason: "the manifest could not be made"}
	}
	s, o := p.connect(ctx, cfg, sec)
	if o.Class != activation.OK {
		return o
	}
	defer s.close()
	for i, f := range files {
		renaming, err := s.write(f)
		if err == nil {
			continue
		}
		if o = s.outcome(err); renaming && errors.Is(err, os.ErrNotExist) {
			o.Class, o.Reason = activation.Retry, "the file was gone before it could be given its name"
		}
		o.Unknown = i > 0 || renaming
		return o
	}
	return activation.Outcome{Class: activation.OK}
}

// Test writes a file to the folder, renames it and removes it.
func (p *SFTP) Test(ctx context.Context, to activation.Target) activation.Outcome {
	cfg, sec, err := p.read(to)
	if err != nil {
		return wire.BadSettings()
	}
	s, o := p.connect(ctx, cfg, sec)
	if o.Class != activation.OK {
		return o
	}
	defer s.close()
	name := cfg.File.folder() + ".mubatch-connection-test"
	if _, err := s.write(file{name: name}); err != nil {
		return s.outcome(err)
	}
	if err := s.sftp.Remove(name); err != nil && !errors.Is(err, os.ErrPermission) { // a place to leave files at only
		return s.outcome(err)
	}
	return activation.Outcome{Class: activation.OK}
}

// Draft implements [activation.Drafter].
func (p *SFTP) Draft(to activation.Target, m activation.Message) ([]activation.Draft, error) {
	cfg, _, err := p.read(to)
	if err != nil {
		return nil, err
	}
	return drafts(m, func(f file) activation.Draft {
		u := url.URL{Scheme: "sftp", Host: cfg.address(), Path: path.Join("/", f.name)}
		return activation.Draft{Method: http.MethodPut, URL: u.String(), Header: http.Header{"Content-Type": {f.kind}}}
	})
}

func (p *SFTP) read(t activation.Target) (cfg SFTPConfig, sec sftpSecrets, err error) {
	err = wire.Read(t.Settings, &cfg, &sec)
	if cfg.Port == 0 {
		cfg.Port = 22
	}
	cfg.File = cfg.File.withDefaults()
	return cfg, sec, err
}

func (cfg SFTPConfig) address() string { return net.JoinHostPort(cfg.Host, strconv.Itoa(cfg.Port)) }

// files returns those of a run, with the marker that the data is complete if there is to be one.
func (cfg SFTPConfig) files(r run, m activation.Message) ([]file, error) {
	list, err := r.files(m)
	if err == nil && cfg.DoneMarker {
		list = slices.Insert(list, 1, file{name: list[0].name + ".done"})
	}
	return list, err
}

// write writes a file under the name .{name}.part and renames it when it is complete. A file of the name that is there
// already is replaced: it is of an earlier attempt. renaming tells whether an error came so late that the file may be there.
func (s *session) write(f file) (renaming bool, err error) {
	dir, name := path.Split(f.name)
	part := dir + "." + strings.TrimPrefix(name, ".") + ".part"
	w, err := s.sftp.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if errors.Is(err, os.ErrNotExist) && dir != "" {
		if err := s.sftp.MkdirAll(strings.TrimSuffix(dir, "/")); err != nil {
			return false, err
		}
		w, err = s.sftp.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	}
	if err != nil {
		return false, err
	}
	err = s.fill(w, f.data)
	if err != nil {
		s.sftp.Remove(part) // or it stays until the next attempt, and nobody takes it for a file
		return false, err
	}
	if _, ok := s.sftp.HasExtension("posix-rename@openssh.com"); ok {
		return true, s.sftp.PosixRename(part, f.name)
	}
	if err := s.sftp.Rename(part, f.name); err == nil {
		return true, nil
	}
	// A plain rename replaces nothing. But one that took place, and was answered badly, must not cost the file.
	if _, err := s.sftp.Stat(part); err != nil {
		return true, err
	}
	if err := s.sftp.Remove(f.name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return true, err
	}
	return true, s.sftp.Rename(part, f.name)
}

// fill writes data and closes the file. The server is asked to bring it to its disk, if it knows how.
func (s *session) fill(w *sftp.File, data []byte) error {
	n, err := w.Write(data)
	if err == nil && n < len(data) {
		err = io.ErrShortWrite
	}
	if _, ok := s.sftp.HasExtension("fsync@openssh.com"); ok && err == nil {
		err = w.Sync()
	}
	if closing := w.Close(); err == nil {
		err = closing
	}
	return err
}

// outcome is what an answer of the server, or none, means.
func (s *session) outcome(err error) activation.Outcome {
	const (
		noSpace      = 14 // SSH_FX_NO_SPACE_ON_FILESYSTEM and the next: draft-ietf-secsh-filexfer-13
		quota        = 15
		writeProtect = 12
	)
	o := activation.Outcome{Class: activation.Retry}
	var status *sftp.StatusError
	switch {
	case s.ctx.Err() != nil: // whatever it was that broke for that
		o.Reason, _ = activation.Failure(s.ctx.Err())
	case errors.Is(err, os.ErrPermission):
		o.Class, o.Reason = activation.Config, "the user may not write to the folder"
	case errors.Is(err, os.ErrNotExist):
		o.Class, o.Reason = activation.Config, "the folder does not exist, and cannot be made"
	case errors.As(err, &status) && status.Code == writeProtect:
		o.Class, o.Reason = activation.Config, "the server takes no files: it is read-only"
	case errors.As(err, &status) && (status.Code == noSpace || status.Code == quota):
		o.Reason = "the server has no room left"
	case errors.As(err, &status):
		o.Reason = "the server could not write the file"
	default:
		o.Reason, _ = activation.Failure(err)
	}
	return o
}
