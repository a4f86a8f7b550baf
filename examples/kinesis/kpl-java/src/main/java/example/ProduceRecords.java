package example;

import java.net.URI;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;

import software.amazon.awssdk.auth.credentials.AwsBasicCredentials;
import software.amazon.awssdk.auth.credentials.StaticCredentialsProvider;
import software.amazon.kinesis.producer.KinesisProducer;
import software.amazon.kinesis.producer.KinesisProducerConfiguration;
import software.amazon.kinesis.producer.UserRecordFailedException;
import software.amazon.kinesis.producer.UserRecordResult;

/**
 * Writes records with the KPL, which packs many of them into one record of the stream.
 *
 * <p>The KPL speaks nothing but TLS. The certificate is not checked here, so one that signed itself will do.
 */
public final class ProduceRecords {
    private ProduceRecords() {}

    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = new HashMap<>();
        for (int at = 0; at + 1 < arguments.length; at += 2) {
            options.put(arguments[at].substring(2), arguments[at + 1]);
        }
        String stream = options.getOrDefault("stream", "example");
        int first = Integer.parseInt(options.getOrDefault("first", "0"));
        int records = Integer.parseInt(options.getOrDefault("records", "10000"));
        int keys = Integer.parseInt(options.getOrDefault("keys", "50"));
        double perSecond = Double.parseDouble(options.getOrDefault("per-second", "0"));     // 0: no bound
        URI endpoint = URI.create(
                options.getOrDefault("endpoint", environment("AWS_ENDPOINT_URL", "https://127.0.0.1:7443")));

        KinesisProducerConfiguration configuration = new KinesisProducerConfiguration()
                .setRegion(environment("AWS_REGION", environment("AWS_DEFAULT_REGION", "us-east-1")))
                .setCredentialsProvider(StaticCredentialsProvider.create(AwsBasicCredentials.create(
                        environment("AWS_ACCESS_KEY_ID", "any"), environment("AWS_SECRET_ACCESS_KEY", "any"))))
                .setKinesisEndpoint(endpoint.getHost())
                .setKinesisPort(endpoint.getPort())
                .setCloudwatchEndpoint(endpoint.getHost())
                .setCloudwatchPort(endpoint.getPort())
                .setStsEndpoint(endpoint.getHost())
                .setStsPort(endpoint.getPort())
                .setVerifyCertificate(false)
                .setRecordMaxBufferedTime(100)
                .setRecordTtl(60_000)
                .setLogLevel("warning");
        KinesisProducer producer = new KinesisProducer(configuration);

        long began = System.nanoTime();
        List<Future<UserRecordResult>> results = new ArrayList<>(records);
        for (int row = first; row < first + records; row++) {
            String key = "key-" + row % keys;
            byte[] data = ("{\"key\": \"" + key + "\", \"row\": " + row + "}").getBytes(StandardCharsets.UTF_8);
            results.add(producer.addUserRecord(stream, key, ByteBuffer.wrap(data)));
            if (row == first) {
                // With it the KPL learns the stream's shards. Before it knows them it packs nothing together.
                producer.flush();
                results.get(0).get(90, TimeUnit.SECONDS);
            }
            while (producer.getOutstandingRecordsCount() > 5_000
                    || perSecond > 0 && results.size() > perSecond * (System.nanoTime() - began) / 1e9) {
                TimeUnit.MILLISECONDS.sleep(1);
            }
        }
        producer.flush();

        int stored = 0;
        int attempts = 0;
        Set<String> aggregates = new HashSet<>();
        Set<String> shards = new HashSet<>();
        String failure = null;
        for (Future<UserRecordResult> result : results) {
            try {
                UserRecordResult done = result.get(90, TimeUnit.SECONDS);
                stored++;
                attempts += done.getAttempts().size();
                aggregates.add(done.getShardId() + done.getSequenceNumber());
                shards.add(done.getShardId());
            } catch (ExecutionException error) {
                failure = error.getCause() instanceof UserRecordFailedException refused
                        ? refused.getResult().getAttempts().toString() : error.getCause().toString();
            }
        }
        if (failure != null) {
            System.out.println("error: " + failure);
        }
        System.out.printf("%d of %d records stored as %d records of the stream in %d shards, %d attempts, %.2f s%n",
                stored, records, aggregates.size(), shards.size(), attempts, (System.nanoTime() - began) / 1e9);
        producer.destroy();
        System.exit(stored == records ? 0 : 1);
    }

    private static String environment(String name, String otherwise) {
        String value = System.getenv(name);
        return value == null || value.isEmpty() ? otherwise : value;
    }
}
