package cli

import (
	"github.com/spf13/cobra"

	"bawn.dev/bawn/internal/node"
	"bawn.dev/bawn/internal/secret"
)

// rootKeyText says how root keys are named.
const rootKeyText = `  file:PATH             a file with 32 random bytes, or as many hex digits
  passphrase:FILE       the first line of a file, stretched by scrypt
  awskms:KEY-ARN        AWS KMS: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are its
                        credentials, AWS_ENDPOINT_URL_KMS another address
  vault:[MOUNT/]KEY     the Transit engine of HashiCorp Vault or OpenBao, by VAULT_ADDR
                        and VAULT_TOKEN`

// addRootKey gives a command that opens a data directory the flag --root-key.
func addRootKey(c *cobra.Command, spec *string) {
	c.Flags().StringVar(spec, "root-key", "", "what wraps the root secret: file:PATH, passphrase:FILE, awskms:KEY-ARN or vault:KEY (default: BAWN_ROOT_KEY, else nothing does)")
}

// rootKey returns the root key that was named, or the environment names.
func (a *app) rootKey(spec string) (secret.RootKey, error) {
	if spec == "" {
		spec = a.Getenv("BAWN_ROOT_KEY")
	}
	return node.OpenRootKey(spec, a.Getenv)
}

func newRootKey(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "root-key",
		GroupID: groupNode,
		Short:   "Say what wraps the root secret of a node",
		Long: `The root secret of a node, from which its other keys come, lies in its data directory: as
it is, or wrapped with a root key that is somewhere else.

` + rootKeyText,
		Example: `  bawn root-key change --to passphrase:/etc/bawn/words
  bawn up --root-key passphrase:/etc/bawn/words`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(newRootKeyChange(a))
	return c
}

func newRootKeyChange(a *app) *cobra.Command {
	var data, from, to string
	c := &cobra.Command{
		Use:   "change",
		Short: "Wrap the root secret of a stopped node with another root key",
		Long: `Wraps the root secret of a stopped node with another root key. Nothing else is touched: all
keys and everything that they encrypt stay as they are. What was wrapped is opened once
with the new key before it takes the place of the old.

` + rootKeyText + `
  none                  nothing wraps it: it lies in the data directory as it is

Backups that were made before hold the root secret as it was wrapped then.`,
		Example: `  bawn root-key change --to file:/etc/bawn/root.key
  bawn root-key change --from file:/etc/bawn/root.key --to awskms:arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab
  bawn root-key change --from vault:bawn --to none --data /var/lib/bawn`,
		Args: cobra.NoArgs,
		RunE: runE(func(cmd *cobra.Command, _ []string) error {
			if to == "" {
				return usagef("name the new root key with --to, or --to none")
			}
			if err := a.fillData(&data); err != nil {
				return err
			}
			old, err := a.rootKey(from)
			if err != nil {
				return err
			}
			spec := to
			if to == "none" {
				spec = ""
			}
			fresh, err := node.OpenRootKey(spec, a.Getenv)
			if err != nil {
				return err
			}
			if err := node.ChangeRootKey(cmd.Context(), data, old, fresh); err != nil {
				return err
			}
			name := "none"
			if fresh != nil {
				name = fresh.Name()
			}
			return a.did("root key", name)
		}),
	}
	addData(c, &data)
	c.Flags().StringVar(&from, "from", "", "the root key of now (default: BAWN_ROOT_KEY, else none)")
	c.Flags().StringVar(&to, "to", "", "the new root key, or none")
	a.addOutput(c)
	return c
}
