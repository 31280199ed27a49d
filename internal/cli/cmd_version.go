package cli

import (
	"runtime"

	"github.com/spf13/cobra"
)

func newVersion(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:     "version",
		GroupID: groupNode,
		Short:   "Print the version of this program",
		Example: `  bawn version
  bawn version -o json`,
		Args: cobra.NoArgs,
		RunE: runE(func(*cobra.Command, []string) error {
			if a.format == "json" {
				return a.printJSON(map[string]string{
					"version": Version(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
				})
			}
			a.printf("%s (%s, %s/%s)\n", versionText(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		}),
	}
	a.addOutput(c)
	return c
}
