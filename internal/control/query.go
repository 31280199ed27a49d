package control

import "bawn.dev/bawn/internal/evidence"

// EventQuery selects records for [Control.Events].
type EventQuery = evidence.Query

// LogQuery selects lines for [Control.LogLines].
type LogQuery = evidence.LogQuery
