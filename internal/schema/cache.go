package schema

import "sync"

// maxCached is how many compiled schemas a cache keeps.
const maxCached = 1024

// Cache keeps compiled schemas by their text. The zero value is ready; it is safe
// for concurrent use.
type Cache struct {
	mu  sync.RWMutex
	all map[string]*Schema
}

// Get returns the compiled schema of a text, as [Compile] does.
func (c *Cache) Get(text string) (*Schema, error) {
	c.mu.RLock()
	s := c.all[text]
	c.mu.RUnlock()
	if s != nil {
		return s, nil
	}
	s, err := Compile(text)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil || len(c.all) >= maxCached {
		c.all = map[string]*Schema{} // they are compiled again as they are asked for
	}
	c.all[text] = s
	return s, nil
}
