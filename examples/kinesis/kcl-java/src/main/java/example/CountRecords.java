package example;

import java.io.IOException;
import java.io.PrintWriter;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.HashMap;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

import software.amazon.awssdk.auth.credentials.AwsBasicCredentials;
import software.amazon.awssdk.auth.credentials.StaticCredentialsProvider;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.cloudwatch.CloudWatchAsyncClient;
import software.amazon.awssdk.services.dynamodb.DynamoDbAsyncClient;
import software.amazon.awssdk.services.kinesis.KinesisAsyncClient;
import software.amazon.kinesis.common.ConfigsBuilder;
import software.amazon.kinesis.common.InitialPositionInStream;
import software.amazon.kinesis.common.InitialPositionInStreamExtended;
import software.amazon.kinesis.common.KinesisClientUtil;
import software.amazon.kinesis.coordinator.Scheduler;
import software.amazon.kinesis.exceptions.InvalidStateException;
import software.amazon.kinesis.exceptions.ShutdownException;
import software.amazon.kinesis.exceptions.ThrottlingException;
import software.amazon.kinesis.lifecycle.events.InitializationInput;
import software.amazon.kinesis.lifecycle.events.LeaseLostInput;
import software.amazon.kinesis.lifecycle.events.ProcessRecordsInput;
import software.amazon.kinesis.lifecycle.events.ShardEndedInput;
import software.amazon.kinesis.lifecycle.events.ShutdownRequestedInput;
import software.amazon.kinesis.processor.RecordProcessorCheckpointer;
import software.amazon.kinesis.processor.ShardRecordProcessor;
import software.amazon.kinesis.processor.SingleStreamTracker;
import software.amazon.kinesis.retrieval.KinesisClientRecord;
import software.amazon.kinesis.retrieval.RetrievalConfig;
import software.amazon.kinesis.retrieval.polling.PollingConfig;

/**
 * A KCL worker that counts records and checkpoints after each batch.
 *
 * <p>Three clients, three endpoints, one server: streams, leases and metrics all go to streamkit. With {@code --output}
 * it appends a line for each record, "shard, sequence number, sub-sequence number, data", before it checkpoints.
 */
public final class CountRecords {
    private static final AtomicLong COUNTED = new AtomicLong();
    private static final CountDownLatch ENOUGH = new CountDownLatch(1);

    private CountRecords() {}

    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = parse(arguments);
        String stream = options.getOrDefault("stream", "example");
        String application = options.getOrDefault("application", "count-records");
        String worker = options.getOrDefault("worker", UUID.randomUUID().toString());
        URI endpoint = URI.create(options.getOrDefault("endpoint", endpointOfEnvironment()));
        long records = Long.parseLong(options.getOrDefault("records", "1000"));
        long seconds = Long.parseLong(options.getOrDefault("seconds", "60"));
        long failoverMillis = Long.parseLong(options.getOrDefault("failover-ms", "10000"));
        PrintWriter output = options.containsKey("output") ? open(Path.of(options.get("output"))) : null;

        Region region = Region.of(environment("AWS_REGION", environment("AWS_DEFAULT_REGION", "us-east-1")));
        StaticCredentialsProvider credentials = StaticCredentialsProvider.create(AwsBasicCredentials.create(
                environment("AWS_ACCESS_KEY_ID", "any"), environment("AWS_SECRET_ACCESS_KEY", "any")));
        KinesisAsyncClient kinesis = KinesisClientUtil.createKinesisAsyncClient(KinesisAsyncClient.builder()
                .endpointOverride(endpoint).region(region).credentialsProvider(credentials));
        DynamoDbAsyncClient leases = DynamoDbAsyncClient.builder()
                .endpointOverride(endpoint).region(region).credentialsProvider(credentials).build();
        CloudWatchAsyncClient metrics = CloudWatchAsyncClient.builder()
                .endpointOverride(endpoint).region(region).credentialsProvider(credentials).build();

        SingleStreamTracker tracker = new SingleStreamTracker(
                stream, InitialPositionInStreamExtended.newInitialPosition(InitialPositionInStream.TRIM_HORIZON));
        ConfigsBuilder configs = new ConfigsBuilder(
                tracker, application, kinesis, leases, metrics, worker, () -> new Counter(output, records));
        RetrievalConfig retrieval = configs.retrievalConfig();          // its default is enhanced fan-out
        if (!options.containsKey("fan-out")) {
            retrieval.retrievalSpecificConfig(
                    new PollingConfig(stream, kinesis).idleTimeBetweenReadsInMillis(200));
        }

        // A worker that was killed is missed after its fail-over time. The leader, who hands out leases, is missed
        // after its own; both are scaled together here so that a demonstration need not wait two minutes.
        var leaseManagement = configs.leaseManagementConfig()
                .failoverTimeMillis(failoverMillis)
                .shardSyncIntervalMillis(failoverMillis)
                .dynamoDbLockBasedLeaderLeaseDurationInMillis(3 * failoverMillis)
                .dynamoDbLockBasedLeaderHeartbeatPeriodInMillis(failoverMillis);
        leaseManagement.workerUtilizationAwareAssignmentConfig()
                .inMemoryWorkerMetricsCaptureFrequencyMillis(failoverMillis / 4)
                .workerMetricsReporterFreqInMillis(failoverMillis);
        Scheduler scheduler = new Scheduler(
                configs.checkpointConfig(),
                configs.coordinatorConfig().parentShardPollIntervalMillis(Math.min(10_000, failoverMillis)),
                leaseManagement,
                configs.lifecycleConfig(),
                configs.metricsConfig(),
                configs.processorConfig(),
                retrieval);

        Thread main = Thread.currentThread();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> stop(main)));
        Thread thread = new Thread(scheduler, "scheduler");
        thread.setDaemon(true);
        thread.start();
        boolean enough = ENOUGH.await(seconds, TimeUnit.SECONDS);
        scheduler.startGracefulShutdown().get(20, TimeUnit.SECONDS);
        System.out.println(COUNTED.get() + " records counted by " + worker);
        System.out.flush();
        kinesis.close();
        leases.close();
        metrics.close();
        Runtime.getRuntime().halt(enough ? 0 : 1);
    }

    /** A signal to end: hands the shards over first. */
    private static void stop(Thread main) {
        ENOUGH.countDown();
        try {
            main.join();
        } catch (InterruptedException error) {
            Thread.currentThread().interrupt();
        }
    }

    /** Counts the records of one shard. */
    private static final class Counter implements ShardRecordProcessor {
        private final PrintWriter output;
        private final long enough;
        private String shard;
        private long here;

        Counter(PrintWriter output, long enough) {
            this.output = output;
            this.enough = enough;
        }

        @Override
        public void initialize(InitializationInput input) {
            shard = input.shardId();
            System.out.println("begin " + shard + " at " + input.extendedSequenceNumber());
        }

        @Override
        public void processRecords(ProcessRecordsInput input) {
            if (input.records().isEmpty()) {
                return;
            }
            if (output != null) {
                synchronized (output) {
                    for (KinesisClientRecord record : input.records()) {
                        output.println(String.join("\t", shard, record.sequenceNumber(),
                                Long.toString(record.subSequenceNumber()),
                                StandardCharsets.UTF_8.decode(record.data()).toString()));
                    }
                    output.flush();
                }
            }
            checkpoint(input.checkpointer());
            here += input.records().size();
            long counted = COUNTED.addAndGet(input.records().size());
            System.out.println(shard + " " + here + ", in all " + counted);
            if (counted >= enough) {
                ENOUGH.countDown();
            }
        }

        @Override
        public void leaseLost(LeaseLostInput input) {
            System.out.println("lost " + shard);
        }

        @Override
        public void shardEnded(ShardEndedInput input) {
            // Only this checkpoint lets the children begin.
            System.out.println("end " + shard);
            checkpoint(input.checkpointer());
        }

        @Override
        public void shutdownRequested(ShutdownRequestedInput input) {
            checkpoint(input.checkpointer());
        }

        private void checkpoint(RecordProcessorCheckpointer checkpointer) {
            try {
                checkpointer.checkpoint();
            } catch (ShutdownException error) {
                System.out.println("lost " + shard + ": another worker goes on from the last checkpoint");
            } catch (ThrottlingException | InvalidStateException error) {
                throw new IllegalStateException(error);
            }
        }
    }

    private static PrintWriter open(Path file) throws IOException {
        return new PrintWriter(Files.newBufferedWriter(file, StandardOpenOption.CREATE, StandardOpenOption.APPEND));
    }

    /** "--name value" and, for what is switched on, "--name" alone. */
    private static Map<String, String> parse(String[] arguments) {
        Map<String, String> options = new HashMap<>();
        for (int at = 0; at < arguments.length; at++) {
            boolean alone = at + 1 == arguments.length || arguments[at + 1].startsWith("--");
            options.put(arguments[at].substring(2), alone ? "" : arguments[++at]);
        }
        return options;
    }

    private static String endpointOfEnvironment() {
        return environment("AWS_ENDPOINT_URL", "http://127.0.0.1:7441");
    }

    private static String environment(String name, String otherwise) {
        String value = System.getenv(name);
        return value == null || value.isEmpty() ? otherwise : value;
    }
}
