// node llama_cpp.mjs PACKAGE MODEL.gguf '{"texts": [...], "ids": [...], "count": n}'
//
// Loads a GGUF file in llama.cpp, by the npm package node-llama-cpp that is installed in PACKAGE, and
// prints as JSON the token ids of each text and the greedy continuation of `ids`.
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const [, , folder, modelPath, asked] = process.argv;
const found = createRequire(`${folder}/`).resolve("node-llama-cpp");
const {getLlama} = await import(pathToFileURL(found).href);
const {texts, ids, count} = JSON.parse(asked);
// Never built here, and never on a GPU: the prebuilt library for this machine's processor.
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath});
const tokens = texts.map((text) => Array.from(model.tokenize(text, true)));
const context = await model.createContext({contextSize: 256, threads: 1});
const sequence = context.getSequence();
const continuation = [];
for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
    continuation.push(token);
    if (continuation.length === count) break;
}
console.log(JSON.stringify({tokens, continuation, eos: model.tokens.eos, eot: model.tokens.eot}));
process.exit(0);
