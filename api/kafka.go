package api

import (
	"net/http"
	"slices"

	"github.com/mubatch/mubatch/activation"
	"github.com/mubatch/mubatch/api/problem"
	"github.com/mubatch/mubatch/collector"
	"github.com/mubatch/mubatch/collector/kafka"
)

// KafkaSeals seals the secrets of Kafka sources as those of destinations are.
type KafkaSeals struct{ Ring *activation.KeyRing }

func kafkaSecrets(workspace, source int32) activation.Place {
	return activation.Place{Workspace: workspace, Table: "kafka_sources", Column: "secrets", ID: int64(source)}
}

// Seal implements [kafka.Sealer].
func (s KafkaSeals) Seal(workspace, source int32, secrets []byte) []byte {
	return s.Ring.Seal(kafkaSecrets(workspace, source), secrets)
}

// Open implements [kafka.Sealer].
func (s KafkaSeals) Open(workspace, source int32, sealed []byte) ([]byte, error) {
	return s.Ring.Open(kafkaSecrets(workspace, source), sealed)
}

type kafkaJSON struct {
	SourceID string   `json:"source_id"`
	Brokers  []string `json:"brokers"`
	Topics   []string `json:"topics"`
	Group    string   `json:"group"`
	Start    string   `json:"start"`
	Mapping  *string  `json:"mapping"`
	TLS      bool     `json:"tls"`
	CA       *string  `json:"ca"`
	SASL     *string  `json:"sasl"`
	Username *string  `json:"username"`
	Secrets  []string `json:"secrets"`
}

func showKafka(source int32, s kafka.Settings, secrets kafka.Secrets) kafkaJSON {
	given := func(text string) *string {
		if text == "" {
			return nil
		}
		return &text
	}
	out := kafkaJSON{
		SourceID: formatID(sourceID, source), Brokers: s.Brokers, Topics: s.Topics, Group: s.Group, Start: s.Start,
		Mapping: given(s.Mapping), TLS: s.TLS, CA: given(s.CA), SASL: given(s.SASL), Username: given(s.Username), Secrets: []string{},
	}
	for name, value := range map[string]string{"password": secrets.Password, "certificate": secrets.Certificate, "key": secrets.Key} {
		if value != "" {
			out.Secrets = append(out.Secrets, name)
		}
	}
	slices.Sort(out.Secrets)
	return out
}

// kafkaSource returns the source that the path names, if it is of type kafka.
func (c *call) kafkaSource() (collector.Source, error) {
	s, err := c.source(c.param("source"))
	if err != nil {
		return s, err
	}
	if s.Type != collector.TypeKafka {
		return s, notOfKafka()
	}
	return s, nil
}

func notOfKafka() *problem.Problem {
	p := problem.New(http.StatusConflict, "not_kafka", "The source does not get its events from Kafka.")
	p.Detail = "Make a source with the type kafka."
	return p
}

func getKafka(c *call) (answer, error) {
	if _, err := c.query(); err != nil {
		return answer{}, err
	}
	s, err := c.kafkaSource()
	if err != nil {
		return answer{}, err
	}
	settings, secrets, err := c.kafka.Get(c.Context(), c.workspace(), s.ID)
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, showKafka(s.ID, settings, secrets))
}

func putKafka(c *call) (answer, error) {
	var in struct {
		kafka.Settings
		Secrets *kafka.Secrets `json:"secrets"`
	}
	if err := c.decode(&in); err != nil {
		return answer{}, err
	}
	s, err := c.source(c.param("source"))
	if err != nil {
		return answer{}, err
	}
	if in.Group == "" {
		in.Group = "mubatch-" + s.Key
	}
	if in.Start == "" {
		in.Start = kafka.Earliest
	}
	var secrets kafka.Secrets
	if in.Secrets != nil {
		secrets = *in.Secrets
	} else if _, secrets, err = c.kafka.Get(c.Context(), c.workspace(), s.ID); err != nil && !missing(err) {
		return answer{}, err
	}
	var faults []problem.FieldError
	for _, f := range in.Check(secrets) {
		faults = append(faults, problem.FieldError{Pointer: "#" + f.Pointer, Code: "invalid", Detail: f.Detail})
	}
	if in.Mapping != "" {
		m, err := collector.NewMappingStore(c.db).Get(c.Context(), c.workspace(), in.Mapping)
		if missing(err) {
			faults = append(faults, problem.FieldError{Pointer: "#/mapping", Code: "invalid", Detail: "must be the key or the id of a mapping"})
		} else if err != nil {
			return answer{}, err
		}
		in.Mapping = m.Key
	}
	if len(faults) > 0 {
		return answer{}, invalid(faults...)
	}
	if s.Type != collector.TypeKafka {
		return answer{}, notOfKafka()
	}
	if err := c.kafka.Put(c.Context(), c.workspace(), s.ID, in.Settings, secrets); err != nil {
		return answer{}, err
	}
	c.subject = formatID(sourceID, s.ID)
	return reply(http.StatusOK, showKafka(s.ID, in.Settings, secrets))
}

type kafkaRejectedJSON struct {
	Topic      string    `json:"topic"`
	Partition  int32     `json:"partition"`
	Offset     int64     `json:"offset"`
	Code       string    `json:"code"`
	Reason     string    `json:"reason"`
	Record     []byte    `json:"record"`
	RejectedAt timestamp `json:"rejected_at"`
}

func listKafkaRejected(c *call) (answer, error) {
	var before int64
	limit, _, err := c.paging(&before)
	if err != nil {
		return answer{}, err
	}
	s, err := c.kafkaSource()
	if err != nil {
		return answer{}, err
	}
	found, err := c.kafka.Rejected(c.Context(), c.workspace(), s.ID, before, limit+1)
	if err != nil {
		return answer{}, err
	}
	p, err := pageOf(c, found, limit, func(r kafka.Rejected) any { return r.ID }, func(r kafka.Rejected) kafkaRejectedJSON {
		return kafkaRejectedJSON{r.Topic, r.Partition, r.Offset, r.Code, r.Reason, r.Record, timestamp(r.RejectedAt)}
	})
	if err != nil {
		return answer{}, err
	}
	return reply(http.StatusOK, p)
}
