package secret

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"bawn.dev/bawn"
	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// awsKMS is a root key of AWS KMS: its Encrypt and Decrypt, signed with Signature
// Version 4. Credentials are those of the usual variables, AWS_ACCESS_KEY_ID,
// AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; the address is AWS_ENDPOINT_URL_KMS, or
// that of the region in the ARN.
type awsKMS struct {
	arn, region string
	url         *url.URL
	cfg         RootKeyConfig
}

func openAWSKMS(arn string, cfg RootKeyConfig) (RootKey, error) {
	// arn:aws:kms:REGION:ACCOUNT:key/ID
	p := strings.SplitN(arn, ":", 6)
	if len(p) != 6 || p[0] != "arn" || p[2] != "kms" || p[3] == "" || strings.Trim(p[3], "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || !strings.HasPrefix(p[5], "key/") || len(arn) > 2048 {
		return nil, bawn.Errorf(bawn.CodeInvalid, "secret.rootkey", "%.100q is no ARN of a key", arn).WithFix("write it as arn:aws:kms:REGION:ACCOUNT:key/ID; an alias could be moved to another key")
	}
	address := cfg.Getenv("AWS_ENDPOINT_URL_KMS")
	if address == "" {
		address = "https://kms." + p[3] + ".amazonaws.com"
	}
	u, err := checkURL("AWS_ENDPOINT_URL_KMS", address)
	if err != nil {
		return nil, err
	}
	return &awsKMS{arn, p[3], u, cfg}, nil
}

func (k *awsKMS) Name() string { return "awskms:" + k.arn }

// context is the encryption context, which is KMS' associated data.
func (k *awsKMS) context(ad []byte) map[string]string {
	return map[string]string{"bawn": base64.StdEncoding.EncodeToString(ad)}
}

// call does one operation. KMS decrypts with whatever key a text was made with: the
// answer has to name this one.
func (k *awsKMS) call(ctx context.Context, operation string, in any) (out struct {
	KeyID          string `json:"KeyId"`
	CiphertextBlob []byte
	Plaintext      []byte
}, err error) {
	body, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	defer clear(body)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, k.url.String(), bytes.NewReader(body))
	if err != nil {
		return out, err
	}
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	r.Header.Set("X-Amz-Target", "TrentService."+operation)
	sum := sha256.Sum256(body)
	who := aws.Credentials{
		AccessKeyID: k.cfg.Getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: k.cfg.Getenv("AWS_SECRET_ACCESS_KEY"), SessionToken: k.cfg.Getenv("AWS_SESSION_TOKEN"),
	}
	if who.AccessKeyID == "" || who.SecretAccessKey == "" {
		return out, keyFailed(nil, k.Name(), "there are no credentials").WithFix("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the node")
	}
	if err := v4.NewSigner().SignHTTP(ctx, who, r, hex.EncodeToString(sum[:]), "kms", k.region, time.Now()); err != nil {
		return out, err
	}
	if err := ask(k.cfg.Client, r, &out); err != nil {
		return out, keyFailed(err, k.Name(), err.Error()).WithFix("see that %s can be reached, that the credentials are good, and that they may kms:%s with the key", k.url.Host, operation)
	}
	if out.KeyID != k.arn {
		return out, keyFailed(nil, k.Name(), "the service used another key").WithFix("give the ARN of the key itself, as aws kms describe-key shows it")
	}
	return out, nil
}

func (k *awsKMS) Wrap(ctx context.Context, plain, ad []byte) ([]byte, error) {
	out, err := k.call(ctx, "Encrypt", map[string]any{"KeyId": k.arn, "Plaintext": plain, "EncryptionContext": k.context(ad)})
	return out.CiphertextBlob, err
}

func (k *awsKMS) Unwrap(ctx context.Context, wrapped, ad []byte) ([]byte, error) {
	out, err := k.call(ctx, "Decrypt", map[string]any{"KeyId": k.arn, "CiphertextBlob": wrapped, "EncryptionContext": k.context(ad)})
	return out.Plaintext, err
}
