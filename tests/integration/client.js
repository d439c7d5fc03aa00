// A client that knows nothing but the .proto: ranks three Tweets, then sends a request that is wrong.
// Usage: node client.js PROTO_DIRECTORY HOST:PORT        Prints {"response": ..., "refusal": ...}.
'use strict';
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const [protoDirectory, target] = process.argv.slice(2);
const definition = protoLoader.loadSync('timelines/ranking/v1/ranking.proto', {
  includeDirs: [protoDirectory],
  longs: String, // ids beyond 2^53 stay exact
  enums: String,
  defaults: true,
});
const { TimelineRankingService } = grpc.loadPackageDefinition(definition).timelines.ranking.v1;
const client = new TimelineRankingService(target, grpc.credentials.createInsecure());

const request = {
  requestId: 'from-node',
  viewerId: '7',
  lastVisitMs: '1700000000000',
  requestTimeMs: '1700003600000',
  candidates: {
    tweetIds: ['9007199254740993', '9007199254740995', '2'],
    createdAtMs: ['1700000100000', '1700000300000', '1700000200000'],
    authorIndex: [0, 1, 1],
    authorIds: ['101', '102'],
    authors: { columns: ['strength'], values: [0, 2] },
    tweets: {
      columns: ['unknown', 'likes'],
      values: [5, 0, 5, NaN, 5, 99],
      categorical: [{ name: 'language', vocabulary: ['ja', 'en'], indices: [1, 0, 2] }],
    },
  },
};

const call = (message) =>
  new Promise((resolve) => {
    client.rankTimeline(message, { deadline: Date.now() + 10000 }, (error, response) => resolve({ error, response }));
  });

(async () => {
  const { error, response } = await call(request);
  if (error) throw error;
  const wrong = await call({ ...request, viewerId: '0' });
  const refusal = { code: wrong.error.code, details: wrong.error.metadata.get('grpc-status-details-bin').toString() };
  console.log(JSON.stringify({ response, refusal }));
  client.close();
})();
