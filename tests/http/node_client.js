// Node's own HTTP/2 and HTTP/1.1 clients against a listener: node node_client.js URL [CERTIFICATE]
// Writes one line of JSON: what was answered.
const http = require("node:http");
const https = require("node:https");
const http2 = require("node:http2");
const fs = require("node:fs");

const [url, certificate] = process.argv.slice(2);
const ca = certificate ? fs.readFileSync(certificate) : undefined;

function second(session, path, body) {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ":method": "POST", ":path": path });
    let status, size = 0;
    stream.on("response", (headers) => { status = headers[":status"]; });
    stream.on("data", (chunk) => { size += chunk.length; });
    stream.on("end", () => resolve([status, size]));
    stream.on("error", reject);
    stream.end(body);
  });
}

function first(agent, body) {
  return new Promise((resolve, reject) => {
    const asked = (certificate ? https : http).request(url + "/first", { method: "POST", agent, ca }, (answer) => {
      let size = 0;
      answer.on("data", (chunk) => { size += chunk.length; });
      answer.on("end", () => resolve([answer.statusCode, size]));
    });
    asked.on("error", reject);
    asked.end(body);
  });
}

async function main() {
  const session = http2.connect(url, { ca });
  const body = Buffer.alloc(300000, "x");
  const many = await Promise.all(Array.from({ length: 50 }, (_, number) => second(session, `/${number % 10}`, body)));
  const pinged = await new Promise((resolve) => session.ping((error) => resolve(!error)));
  const alpn = session.alpnProtocol;
  await new Promise((resolve) => session.close(resolve));
  const agent = new (certificate ? https : http).Agent({ keepAlive: true });
  const old = [await first(agent, body), await first(agent, body)];
  agent.destroy();
  console.log(JSON.stringify({ alpn, pinged, many, old }));
}

main().catch((error) => { console.error(error); process.exit(1); });
