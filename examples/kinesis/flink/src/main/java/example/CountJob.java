package example;

import java.nio.file.Files;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.TimeUnit;

import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.RichMapFunction;
import org.apache.flink.api.common.serialization.SimpleStringSchema;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.accumulators.LongCounter;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.kinesis.sink.KinesisStreamsSink;
import org.apache.flink.connector.kinesis.source.KinesisStreamsSource;
import org.apache.flink.connector.kinesis.source.config.KinesisStreamsSourceConfigConstants;
import org.apache.flink.connector.kinesis.source.config.KinesisStreamsSourceConfigConstants.InitialPosition;
import org.apache.flink.core.execution.JobClient;
import org.apache.flink.core.execution.SavepointFormatType;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.connectors.kinesis.FlinkKinesisConsumer;
import org.apache.flink.streaming.connectors.kinesis.config.AWSConfigConstants;
import org.apache.flink.streaming.connectors.kinesis.config.ConsumerConfigConstants;

/**
 * A Flink job from one stream to another: each record of the input becomes one of the output, with the count of its
 * key.
 *
 * <p>Runs in this process, in a cluster of its own; ends, by a savepoint that drains the sink, when it has counted so
 * many records.
 */
public final class CountJob {
    private CountJob() {}

    public static void main(String[] arguments) throws Exception {
        Map<String, String> options = parse(arguments);
        String input = options.getOrDefault("input-arn", "arn:aws:kinesis:us-east-1:000000000000:stream/example");
        String output = options.getOrDefault("output", "counts");
        long records = Long.parseLong(options.getOrDefault("records", "1000"));
        long seconds = Long.parseLong(options.getOrDefault("seconds", "120"));
        Properties server = new Properties();
        server.setProperty(AWSConfigConstants.AWS_ENDPOINT,
                options.getOrDefault("endpoint", environment("AWS_ENDPOINT_URL", "http://127.0.0.1:7441")));
        server.setProperty(AWSConfigConstants.AWS_REGION,
                environment("AWS_REGION", environment("AWS_DEFAULT_REGION", "us-east-1")));
        server.setProperty(AWSConfigConstants.AWS_ACCESS_KEY_ID, environment("AWS_ACCESS_KEY_ID", "any"));
        server.setProperty(AWSConfigConstants.AWS_SECRET_ACCESS_KEY, environment("AWS_SECRET_ACCESS_KEY", "any"));

        StreamExecutionEnvironment flink = StreamExecutionEnvironment.getExecutionEnvironment();
        flink.setParallelism(2);
        flink.enableCheckpointing(2_000);

        DataStream<String> lines = options.containsKey("fan-out")
                ? flink.addSource(fanOut(input, server), "fan-out")
                : flink.fromSource(polling(input, server), WatermarkStrategy.noWatermarks(), "polling", Types.STRING);
        lines.keyBy(CountJob::keyOf)
                .map(new Count())
                .sinkTo(KinesisStreamsSink.<String>builder()
                        .setKinesisClientProperties(server)
                        .setStreamName(output)
                        .setSerializationSchema(new SimpleStringSchema())
                        .setPartitionKeyGenerator(CountJob::keyOf)
                        .setMaxTimeInBufferMS(500)
                        .build());

        JobClient job = flink.executeAsync("count");
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
        long counted = 0;
        while (counted < records && System.nanoTime() < deadline
                && !job.getJobStatus().get().isGloballyTerminalState()) {
            TimeUnit.MILLISECONDS.sleep(200);
            counted = (Long) job.getAccumulators().get().getOrDefault(Count.NAME, 0L);
        }
        if (job.getJobStatus().get().isGloballyTerminalState()) {
            job.getJobExecutionResult().get();                    // throws what ended it
        }
        String savepoints = Files.createTempDirectory("count-savepoint").toUri().toString();
        // The fan-out source notices only after half a minute without records that it shall stop.
        job.stopWithSavepoint(true, savepoints, SavepointFormatType.CANONICAL).get(90, TimeUnit.SECONDS);
        System.out.println(counted + " of " + records + " records counted, " + job.getJobStatus().get());
        System.exit(counted == records ? 0 : 1);
    }

    private static KinesisStreamsSource<String> polling(String arn, Properties server) {
        Configuration configuration = new Configuration();
        server.stringPropertyNames().forEach(name -> configuration.setString(name, server.getProperty(name)));
        configuration.set(KinesisStreamsSourceConfigConstants.STREAM_INITIAL_POSITION, InitialPosition.TRIM_HORIZON);
        configuration.set(KinesisStreamsSourceConfigConstants.SHARD_DISCOVERY_INTERVAL_MILLIS, 1_000L);
        return KinesisStreamsSource.<String>builder()
                .setStreamArn(arn)
                .setSourceConfig(configuration)
                .setDeserializationSchema(new SimpleStringSchema())
                .build();
    }

    /** The older source, which is the one that has enhanced fan-out in this version of the connector. */
    private static FlinkKinesisConsumer<String> fanOut(String arn, Properties server) {
        Properties configuration = new Properties();
        configuration.putAll(server);
        configuration.setProperty(ConsumerConfigConstants.STREAM_INITIAL_POSITION, "TRIM_HORIZON");
        configuration.setProperty(ConsumerConfigConstants.RECORD_PUBLISHER_TYPE, "EFO");
        configuration.setProperty(ConsumerConfigConstants.EFO_CONSUMER_NAME, "flink");
        configuration.setProperty(ConsumerConfigConstants.SHARD_DISCOVERY_INTERVAL_MILLIS, "1000");
        return new FlinkKinesisConsumer<>(
                arn.substring(arn.indexOf('/') + 1), new SimpleStringSchema(), configuration);
    }

    /** The key in {"key": "…", …}, which is how all of these examples write their records. */
    private static String keyOf(String line) {
        int begin = line.indexOf("\"key\": \"") + 8;
        return line.substring(begin, line.indexOf('"', begin));
    }

    /** Adds to each record how many of its key there were. */
    private static final class Count extends RichMapFunction<String, String> {
        static final String NAME = "counted";
        private final LongCounter counted = new LongCounter();
        private transient ValueState<Long> ofKey;

        @Override
        public void open(Configuration configuration) {
            getRuntimeContext().addAccumulator(NAME, counted);
            ofKey = getRuntimeContext().getState(new ValueStateDescriptor<>("count", Types.LONG));
        }

        @Override
        public String map(String line) throws Exception {
            long count = ofKey.value() == null ? 1 : ofKey.value() + 1;
            ofKey.update(count);
            counted.add(1);
            return line.substring(0, line.length() - 1) + ", \"count\": " + count + "}";
        }
    }

    private static Map<String, String> parse(String[] arguments) {
        Map<String, String> options = new HashMap<>();
        for (int at = 0; at < arguments.length; at++) {
            boolean alone = at + 1 == arguments.length || arguments[at + 1].startsWith("--");
            options.put(arguments[at].substring(2), alone ? "" : arguments[++at]);
        }
        return options;
    }

    private static String environment(String name, String otherwise) {
        String value = System.getenv(name);
        return value == null || value.isEmpty() ? otherwise : value;
    }
}
