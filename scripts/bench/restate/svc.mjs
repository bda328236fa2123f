// The graph of a novel's chapter (../novel.json: seven calls), and ten steps that do nothing, as
// durable services of Restate. Started by serve.py: node svc.mjs PORT MODELS, with the URLs of the
// models by step as JSON.

import * as restate from "@restatedev/restate-sdk";
import { readFileSync } from "node:fs";
import http from "node:http";

const [port, models] = [Number(process.argv[2]), JSON.parse(process.argv[3])];
const { steps } = JSON.parse(readFileSync(process.env.NOVEL_JSON, "utf8"));
const agent = new http.Agent({ keepAlive: true });

function ask(url, prompt) {
  const body = JSON.stringify({ model: "sim-1", messages: [{ role: "user", content: prompt }] });
  const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(body) };
  return new Promise((resolve, reject) => {
    const request = http.request(`${url}/chat/completions`, { method: "POST", agent, headers });
    request.on("error", reject);
    request.on("response", (response) => {
      const pieces = [];
      response.on("data", (piece) => pieces.push(piece));
      response.on("error", reject);
      response.on("end", () => {
        const text = Buffer.concat(pieces).toString();
        if (response.statusCode !== 200) reject(new Error(`${response.statusCode}: ${text}`));
        else resolve(JSON.parse(text).choices[0].message.content);
      });
    });
    request.end(body);
  });
}

async function run(ctx, inputs) {
  const texts = { ...inputs };
  const step = (name) => {
    const prompt = steps[name].prompt.replace(/\{(\w+)\}/g, (_, other) => texts[other]);
    return ctx.run(name, () => ask(models[name], prompt));
  };
  texts.director = await step("director");
  texts.plot = await step("plot");
  [texts.character, texts.scene] = await restate.RestatePromise.all([step("character"), step("scene")]);
  texts.synthesis = await step("synthesis");
  [texts.optimise, texts.check] = await restate.RestatePromise.all([step("optimise"), step("check")]);
  return { text: texts.optimise, check: texts.check };
}

async function ten(ctx) {
  for (let index = 0; index < 10; index++) await ctx.run(`step ${index}`, () => ({}));
  return {};
}

restate.serve({
  port,
  services: [
    restate.service({ name: "Novel", handlers: { run } }),
    restate.service({ name: "Noop", handlers: { ten } }),
  ],
});
