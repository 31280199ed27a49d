// A real OpenID Connect server for Bawn's tests: oidc-provider, in memory, with
// its own interaction pages. It prints one line of JSON when it listens, with its
// address, and takes one command a line on standard input:
//
//   rotate    sign with a new key from now on, and forget the old ones
//
// usage: node server.mjs CERT.pem KEY.pem
import { createServer } from 'node:https';
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import Provider from 'oidc-provider';

const [cert, key] = process.argv.slice(2).map((f) => readFileSync(f));
let serial = 0;
const newKey = () => ({
  ...generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' }),
  kid: `key-${++serial}`, use: 'sig', alg: 'ES256',
});

let handler = (req, res) => res.writeHead(503).end();
const server = createServer({ cert, key }, (req, res) => handler(req, res));

function start(issuer) {
  const provider = new Provider(issuer, {
    clients: [{
      client_id: 'bawn', application_type: 'native', token_endpoint_auth_method: 'none',
      redirect_uris: ['http://127.0.0.1/callback'], response_types: ['code'],
      grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
      id_token_signed_response_alg: 'ES256',
    }],
    jwks: { keys: [newKey()] },
    features: { deviceFlow: { enabled: true }, devInteractions: { enabled: true } },
    scopes: ['openid', 'offline_access', 'groups'],
    claims: { openid: ['sub'], groups: ['groups', 'email'] },
    conformIdTokenClaims: false,
    ttl: { IdToken: 3600, AccessToken: 3600 },
    issueRefreshToken: () => true,
    pkce: { required: () => true },
    cookies: { keys: ['for tests'] },
    findAccount: (_, id) => ({
      accountId: id,
      claims: () => ({ sub: id, email: `${id}@example.org`, groups: id === 'ann' ? ['platform'] : ['guests'] }),
    }),
  });
  handler = provider.callback();
}

server.listen(0, '127.0.0.1', () => {
  const issuer = `https://127.0.0.1:${server.address().port}`;
  start(issuer);
  console.log(JSON.stringify({ issuer }));
  createInterface({ input: process.stdin }).on('line', (line) => {
    if (line === 'rotate') {
      start(issuer);
      console.log(JSON.stringify({ rotated: serial }));
    }
  }).on('close', () => process.exit(0));
});
