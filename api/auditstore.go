package api

import (
	"context"
	"fmt"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/jackc/pgx/v5"
)

// AuditEntry is a change that was made, or asked for, over the API.
type AuditEntry struct {
	ID      int64
	At      time.Time
	KeyID   int64
	KeyName string // as it was then
	Action  string // such as segment.update
	Subject string // the id of what was changed; empty if there is none
	Detail  jsontext.Value
}

// AuditLog keeps who changed what. Nothing of it is ever changed or deleted.
type AuditLog struct{ db database }

// NewAuditLog returns the log kept in db, a pool or a transaction.
func NewAuditLog(db database) *AuditLog { return &AuditLog{db: db} }

// Record adds an entry for what a key does, and returns it with its id and time.
func (l *AuditLog) Record(ctx context.Context, by Key, e AuditEntry) (AuditEntry, error) {
	const query = `
		INSERT INTO audit_log (workspace_id, api_key_id, api_key_name, action, subject, detail)
		VALUES (@workspace, @key, @name, @action, @subject, @detail)
		RETURNING id, at`
	e.KeyID, e.KeyName = by.ID, by.Name
	err := l.db.QueryRow(ctx, query, pgx.StrictNamedArgs{
		"workspace": by.Workspace, "key": e.KeyID, "name": e.KeyName, "action": e.Action, "subject": e.Subject, "detail": []byte(e.Detail),
	}).Scan(&e.ID, &e.At)
	if err != nil {
		return AuditEntry{}, fmt.Errorf("record %s: %w", e.Action, err)
	}
	return e, nil
}

// List returns at most limit entries of a workspace from before one, the newest first: all, or those of an action, or
// about a subject. Before 0 is from the newest on.
func (l *AuditLog) List(ctx context.Context, workspace int32, action, subject string, before int64, limit int) ([]AuditEntry, error) {
	const query = `
		SELECT id, at, api_key_id, api_key_name, action, subject, detail
		FROM audit_log
		WHERE workspace_id = @workspace
			AND (@before::bigint = 0 OR id < @before)
			AND (@action::text = '' OR action = @action)
			AND (@subject::text = '' OR subject = @subject)
		ORDER BY id DESC
		LIMIT @limit`
	rows, _ := l.db.Query(ctx, query, pgx.StrictNamedArgs{ // err: below
		"workspace": workspace, "before": before, "action": action, "subject": subject, "limit": limit,
	})
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[AuditEntry])
	if err != nil {
		return nil, fmt.Errorf("list audit log: %w", err)
	}
	return list, nil
}
