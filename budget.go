package bawn

import "time"

// Prices are what things cost, in billionths of the currency's unit.
type Prices struct {
	Currency string `json:"currency,omitempty" maxLength:"3" pattern:"^[A-Z]{3}$|^$" doc:"three letters, such as EUR"`
	Call     int64  `json:"call" minimum:"0" maximum:"1000000000000" doc:"of one call, in billionths of the currency's unit, as all prices"`
	CPU      int64  `json:"cpu" minimum:"0" maximum:"1000000000000" doc:"of a second of processor time"`
	Memory   int64  `json:"memory" minimum:"0" maximum:"1000000000000" doc:"of a GiB of memory for a second"`
	Egress   int64  `json:"egress" minimum:"0" maximum:"1000000000000" doc:"of a GiB to or from what is outside"`
}

// MaxPrice is the most that one thing may cost: 1000 units of the currency.
const MaxPrice = 1_000_000_000_000

// Lift is a budget that does not hold until its window ends.
type Lift struct {
	Function string    `json:"function,omitempty" doc:"empty for a budget of the tenant"`
	Of       string    `json:"of,omitempty" doc:"caller, anonymous, or empty for all calls together"`
	Meter    string    `json:"meter"`
	Per      string    `json:"per"`
	Ends     time.Time `json:"ends" doc:"with the window; from then on the budget holds again"`
	Reason   string    `json:"reason"`
	By       string    `json:"by" doc:"who lifted it"`
}

// Standing is how it is with one budget.
type Standing struct {
	Function string    `json:"function,omitempty" doc:"empty for a budget of the tenant"`
	Grant    Grant     `json:"grant"`
	Text     string    `json:"text" doc:"the grant as a manifest writes it"`
	Used     int64     `json:"used" doc:"in the grant's unit; of the caller that used most, for a budget of each caller"`
	Held     int64     `json:"held" doc:"by calls that run"`
	Caller   string    `json:"caller,omitempty" doc:"which that is"`
	Share    int64     `json:"share,omitempty" doc:"the part that callers without a credential may have; 0 where the grant does not bound them"`
	Shared   int64     `json:"shared,omitempty" doc:"what of it they have used"`
	Ends     time.Time `json:"ends" doc:"of the window"`
	Lift     *Lift     `json:"lift,omitempty" doc:"why it does not hold now"`
}

// TenantBudget is how it is with the budgets of a tenant and of its functions.
type TenantBudget struct {
	Tenant    string     `json:"tenant"`
	Operator  bool       `json:"operator,omitempty" doc:"an operator has set the tenant's own: only operators change and lift those"`
	Priced    bool       `json:"priced" doc:"there is a price table; without one calls cost nothing, and no budget of money ends"`
	Standings []Standing `json:"standings" nullable:"false" doc:"the tenant's own first, then those of its functions by name"`
}

// Cost is what was used and by whom. All its lists have the same sum, Total.
type Cost struct {
	From      time.Time `json:"from" doc:"the beginning of the first window that is counted"`
	Per       string    `json:"per" doc:"hour, day or month: the windows that were counted"`
	Windows   int       `json:"windows" doc:"of which something is known"`
	Currency  string    `json:"currency,omitempty"`
	Total     Spending  `json:"total"`
	Functions []Blame   `json:"functions" nullable:"false" doc:"by function, the dearest first"`
	Callers   []Blame   `json:"callers" nullable:"false" doc:"by who began the call, or the chain of calls"`
	Tenants   []Blame   `json:"tenants" nullable:"false" doc:"by tenant"`
}

// Blame is what one of them used.
type Blame struct {
	Name string   `json:"name"`
	Use  Spending `json:"use"`
}
