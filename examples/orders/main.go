// Orders keeps orders in PostgreSQL: POST /orders takes one, GET /orders/{id}
// shows it. It has no password: it connects to a port of its own sandbox, where
// Bawn logs in for it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strconv"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"
	"github.com/jackc/pgx/v5"
)

func main() { lambda.Start(handle) }

// order is what somebody wants.
type order struct {
	ID       int64  `json:"id,omitempty"`
	Item     string `json:"item"`
	Quantity int    `json:"quantity"`
}

// check says what is wrong with an order, or "".
func (o *order) check() string {
	switch {
	case o.Item == "" || len(o.Item) > 100:
		return "item must have 1 to 100 bytes"
	case o.Quantity < 1 || o.Quantity > 1000:
		return "quantity must be 1 to 1000"
	}
	return ""
}

func handle(ctx context.Context, e events.APIGatewayV2HTTPRequest) (events.APIGatewayV2HTTPResponse, error) {
	var o order
	post := e.RequestContext.HTTP.Method == http.MethodPost
	if post {
		if err := json.Unmarshal([]byte(e.Body), &o); err != nil {
			return refuse(http.StatusBadRequest, "the body is no order")
		}
		if wrong := o.check(); wrong != "" {
			return refuse(http.StatusBadRequest, wrong)
		}
	} else {
		var err error
		if o.ID, err = strconv.ParseInt(e.PathParameters["id"], 10, 64); err != nil {
			return refuse(http.StatusNotFound, "there is no such order")
		}
	}
	// A connection is an invocation's own: Bawn cuts it at the end.
	db, err := pgx.Connect(ctx, os.Getenv("BAWN_DB_ORDERS_URL"))
	if err != nil {
		return events.APIGatewayV2HTTPResponse{}, err
	}
	defer db.Close(ctx)
	status := http.StatusOK
	if post {
		status = http.StatusCreated
		err = db.QueryRow(ctx, "insert into orders (item, quantity) values ($1, $2) returning id", o.Item, o.Quantity).Scan(&o.ID)
	} else {
		err = db.QueryRow(ctx, "select item, quantity from orders where id = $1", o.ID).Scan(&o.Item, &o.Quantity)
		if errors.Is(err, pgx.ErrNoRows) {
			return refuse(http.StatusNotFound, "there is no such order")
		}
	}
	if err != nil {
		return events.APIGatewayV2HTTPResponse{}, err
	}
	return answer(status, o)
}

func refuse(status int, why string) (events.APIGatewayV2HTTPResponse, error) {
	return answer(status, map[string]string{"error": why})
}

func answer(status int, v any) (events.APIGatewayV2HTTPResponse, error) {
	b, err := json.Marshal(v)
	return events.APIGatewayV2HTTPResponse{
		StatusCode: status,
		Headers:    map[string]string{"content-type": "application/json"},
		Body:       string(b),
	}, err
}
