package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bawn.dev/bawn"
	"bawn.dev/bawn/client"
)

const maxCertFile = 64 << 10

func newLogin(a *app) *cobra.Command {
	var issuer, tenant, node, ca, cert, certKey string
	var device, browser bool
	c := &cobra.Command{
		Use:     "login",
		GroupID: groupNode,
		Short:   "Log in with an issuer that the node trusts",
		Long: `Logs in with an OpenID Connect issuer that is configured at the node, and keeps the
token in the context file, which only you can read. It is renewed when it ends, as
long as the issuer agrees. From then on it is used instead of the key.

With --device you enter a code on any device that has a browser. With --browser a
browser on this machine is sent back to it. Without either, it is --browser at a
terminal that has a display, and --device else.

With --cert nothing is asked: the node knows you by a client certificate.`,
		Example: `  bawn login
  bawn login --issuer corp --device
  bawn login --node https://fn.example.org:8444 --ca ca.pem --tenant shop
  bawn login --cert me.pem --cert-key me.key`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: runE(func(cmd *cobra.Command, _ []string) error {
			path, err := client.DefaultContextFile()
			if err != nil {
				return err
			}
			at, err := client.LoadContext(path)
			if node != "" {
				at = &client.Context{URL: strings.TrimSuffix(node, "/")}
				if ca == "" {
					return usagef("--node needs --ca FILE: the authority that the node's certificate is from (its DATA/ca.pem)")
				}
				var pem []byte
				if pem, err = readCerts(ca); err != nil {
					return err
				}
				at.CA = string(pem)
			}
			if err != nil {
				return err
			}
			if cert != "" {
				if at.Certificate, err = filepath.Abs(cert); err == nil {
					at.CertificateKey, err = filepath.Abs(certKey)
				}
				if err != nil {
					return bawn.Wrap(err, bawn.CodeInvalid, "login", "the certificate's path cannot be made absolute")
				}
				at.Login, at.Key = nil, ""
				return a.loggedIn(cmd, path, at)
			}
			c, err := client.New(at)
			if err != nil {
				return err
			}
			defer c.Close()
			list, err := c.LoginIssuers(cmd.Context(), tenant)
			if err != nil {
				return err
			}
			with, err := chooseIssuer(list, issuer)
			if err != nil {
				return err
			}
			if !device && !browser {
				browser = a.errTTY && (a.Getenv("DISPLAY") != "" || a.Getenv("WAYLAND_DISPLAY") != "")
			}
			if browser {
				at.Login, err = client.LoginBrowser(cmd.Context(), with, func(where string) {
					a.notef("Open this address in a browser on this machine:\n  %s\n", clean(where))
				})
			} else {
				at.Login, err = client.LoginDevice(cmd.Context(), with, func(where, code string) {
					a.notef("Open this address on any device:\n  %s\nand enter the code %s\n", clean(where), clean(code))
				})
			}
			if err != nil {
				return err
			}
			return a.loggedIn(cmd, path, at)
		}),
	}
	f := c.Flags()
	f.StringVar(&issuer, "issuer", "", "the issuer's name or URL (default: the only one there is)")
	f.StringVar(&tenant, "tenant", "", "the tenant to log in for (default: main)")
	f.BoolVar(&device, "device", false, "enter a code on another device")
	f.BoolVar(&browser, "browser", false, "use a browser on this machine")
	f.StringVar(&node, "node", "", "the node's control address, for a context file that is not there yet")
	f.StringVar(&ca, "ca", "", "with --node: the file of its authority")
	f.StringVar(&cert, "cert", "", "use this client certificate (PEM) instead of logging in")
	f.StringVar(&certKey, "cert-key", "", "the file of the certificate's key (PEM)")
	c.MarkFlagsMutuallyExclusive("device", "browser", "cert")
	c.MarkFlagsRequiredTogether("cert", "cert-key")
	c.MarkFlagFilename("ca", "pem", "crt")
	c.MarkFlagFilename("cert", "pem", "crt")
	c.MarkFlagFilename("cert-key", "pem", "key")
	a.addOutput(c)
	return c
}

// chooseIssuer takes the issuer that was named, or the only one.
func chooseIssuer(list []client.LoginIssuer, name string) (client.LoginIssuer, error) {
	var names []string
	for _, i := range list {
		if i.Name == name || name != "" && i.URL == name || name == "" && len(list) == 1 {
			return i, nil
		}
		names = append(names, i.Name)
	}
	switch {
	case len(list) == 0:
		return client.LoginIssuer{}, bawn.Errorf(bawn.CodeNotFound, "login", "the node has no issuer to log in with for this tenant").
			WithFix("an administrator adds one with bawn issuer add; until then use a key")
	case name == "":
		return client.LoginIssuer{}, usagef("there are several issuers: name one with --issuer: %s", strings.Join(names, ", "))
	}
	return client.LoginIssuer{}, bawn.Errorf(bawn.CodeNotFound, "login", "there is no issuer %.80q to log in with", name).WithFix("use one of %s", strings.Join(names, ", "))
}

// loggedIn asks the node who the new context is, and keeps it if it is somebody.
func (a *app) loggedIn(cmd *cobra.Command, path string, at *client.Context) error {
	c, err := client.New(at)
	if err != nil {
		return err
	}
	defer c.Close()
	if at.Login != nil {
		token := at.Login.Token
		c = c.WithBearer(client.Bearer(token))
	}
	who, err := c.Whoami(cmd.Context())
	if err != nil {
		return err
	}
	if err := client.SaveContext(path, at); err != nil {
		return err
	}
	return a.showWhoami(who)
}

func (a *app) showWhoami(w *client.Whoami) error {
	if a.format == "json" {
		return a.printJSON(w)
	}
	p := w.Principal
	a.printf("%s", clean(p.String()))
	if p.Name != "" {
		a.printf(" (%s)", clean(p.Name))
	}
	a.printf("\n  tenant   %s\n", clean(p.Tenant))
	var roles []string
	for _, r := range p.Roles {
		roles = append(roles, string(r))
	}
	if len(roles) == 0 {
		roles = []string{"none: ask an administrator to map one of your groups to a role"}
	}
	a.printf("  roles    %s\n", clean(strings.Join(roles, ", ")))
	if len(w.Functions) > 0 {
		a.printf("  only for %s\n", clean(strings.Join(w.Functions, ", ")))
	}
	if !w.Expires.IsZero() {
		a.printf("  until    %s\n", w.Expires.UTC().Format(time.RFC3339))
	}
	return nil
}

func newLogout(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "logout",
		GroupID: groupNode,
		Short:   "Forget the login of this context",
		Long: `Removes the token from the context file; a key in it is used again. What was issued
stays good until it ends: an administrator ends it with bawn revoke.`,
		Example:           `  bawn logout`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: runE(func(cmd *cobra.Command, _ []string) error {
			path, err := client.DefaultContextFile()
			if err != nil {
				return err
			}
			at, err := client.LoadContext(path)
			if err != nil {
				return err
			}
			was := at.Login != nil || at.Certificate != ""
			at.Login, at.Certificate, at.CertificateKey = nil, "", ""
			switch {
			case !was:
				a.notef("Nobody is logged in.\n")
			case at.Key == "":
				// Without a credential a context file is none.
				if err := os.Remove(path); err != nil {
					return bawn.Wrap(err, bawn.CodeInvalid, "logout", "the context file %s cannot be removed", path)
				}
			default:
				if err := client.SaveContext(path, at); err != nil {
					return err
				}
			}
			if a.format == "json" {
				return a.printJSON(map[string]bool{"loggedOut": was})
			}
			if was {
				a.printf("logged out\n")
			}
			return nil
		}),
	}
	a.addOutput(c)
	return c
}

func newWhoami(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "whoami",
		GroupID: groupNode,
		Short:   "Say who the node knows you as",
		Example: `  bawn whoami
  bawn whoami -o json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.onNode(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			who, err := c.Whoami(cmd.Context())
			if err != nil {
				return err
			}
			return a.showWhoami(who)
		}),
	}
	a.addOutput(c)
	return c
}

// readCerts reads a file of certificates.
func readCerts(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err == nil {
		defer f.Close()
		var data []byte
		if data, err = io.ReadAll(io.LimitReader(f, maxCertFile+1)); err == nil {
			if len(data) > maxCertFile {
				return nil, bawn.Errorf(bawn.CodeTooLarge, "cli", "%s has more than %d bytes", path, maxCertFile).WithFix("give the file with the root certificates alone")
			}
			return data, nil
		}
	}
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return nil, bawn.Wrap(err, bawn.CodeInvalid, "cli", "%s cannot be read: %v", path, err).WithFix("give the path of a PEM file")
}
